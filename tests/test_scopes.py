"""What an adapter is for: domains and persona attributes."""

from polypersona.records import Example, Persona
from polypersona.scopes import EVERYTHING, Scope

YOUNG = Scope(("healthcare",), {"age": (18.0, 29.0), "area": ("city", "suburb")})


def row(domain, **attributes):
    return Example("1", (), {"domain": domain, "persona": {"attributes": attributes, "text": ""}})


def test_a_row_is_in_scope_where_its_domain_and_every_attribute_are():
    assert YOUNG.has_example(row("healthcare", age=29, area="city"))
    assert not YOUNG.has_example(row("finance", age=29, area="city"))
    assert not YOUNG.has_example(row("healthcare", age=30, area="city"))
    assert not YOUNG.has_example(row("healthcare", age=20, area="rural"))
    assert not YOUNG.has_example(row("healthcare", age=20))
    assert not YOUNG.has_example(row("healthcare", age="20", area="city"))  # a band's label is no number
    assert YOUNG.text == "healthcare; age 18 to 29; area city or suburb"


def test_of_an_attribute_with_several_values_one_is_enough():
    scope = Scope(personas={"interests": ("chess",), "is_retired": ("True",)})
    assert scope.has_persona({"interests": ("gardening", "chess"), "is_retired": True})
    assert not scope.has_persona({"interests": ("gardening",), "is_retired": True})
    assert [one.persona_id for one in scope.people([Persona("a"), Persona("b", {"interests": "chess"})])] == []


def test_nothing_named_is_everything():
    assert EVERYTHING.is_everything
    assert EVERYTHING.examples([row("finance")]) == [row("finance")]
    assert not YOUNG.is_everything
