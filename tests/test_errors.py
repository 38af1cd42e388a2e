"""Every named failure says what and how to mend it, and crosses process borders whole."""

import copy
import inspect
import pickle

import pytest

from polypersona import errors
from polypersona.errors import PolypersonaError, nearest

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, PolypersonaError) and cls.__module__ == errors.__name__
]
EXIT_CODES = {"LeaseLostError": 1, "RunFailedError": 1, "TooManyQuarantinedError": 3, "RunStoppedError": 4}


def test_the_family_is_complete():
    assert len(CLASSES) == 18


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("hint", ["", "Mend the file."])
def test_an_error_survives_pickling_with_message_hint_and_exit_code(cls, hint):
    error = cls("It broke in a.json.", hint) if hint else cls("It broke in a.json.")
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(copied) is cls
        assert (copied.message, copied.hint) == ("It broke in a.json.", hint)
        assert copied.exit_code == EXIT_CODES.get(cls.__name__, 2)
        assert str(copied) == f"It broke in a.json. {hint}".strip()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_an_error_raised_in_a_ray_task_keeps_message_hint_and_exit_code():
    import ray

    @ray.remote(max_retries=0)
    def fail(cls: type[PolypersonaError]) -> None:
        raise cls("It broke in a.json.", "Mend the file.")

    for cls, handle in [(cls, fail.remote(cls)) for cls in CLASSES]:
        with pytest.raises(cls) as caught:
            ray.get(handle)
        assert (caught.value.message, caught.value.hint) == ("It broke in a.json.", "Mend the file.")
        assert caught.value.exit_code == EXIT_CODES.get(cls.__name__, 2)


def test_a_failure_can_be_caught_as_the_builtin_it_is():
    assert issubclass(errors.RecipeError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("temprature", " Did you mean 'temperature'?"), ("zzz", ""), ("", ""), ("top_k", " Did you mean 'top_k'?")],
)
def test_the_nearest_known_name_is_offered_where_one_is_near(name, expected):
    assert nearest(name, ["temperature", "top_k", "draws"]) == expected
