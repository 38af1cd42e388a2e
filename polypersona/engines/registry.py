"""Engine names → engines. Heavy libraries are imported only when their engine is built."""

from __future__ import annotations

from polypersona.engines.base import Engine, EngineSettings
from polypersona.engines.blind import BlindEngine
from polypersona.errors import EngineError, nearest

ENGINES = ("packed", "vllm", "endpoint", "rules", "fake")


def load_engine(settings: EngineSettings) -> Engine:
    """Build the engine the settings name, blind to the personas where they are hidden.

    Raises:
        EngineError: an unknown engine, an option it does not support, or a key it does not find.
        ModelError: the model or adapter cannot be loaded.
        MissingExtraError: the engine's library is not installed.
    """
    engine = _load_seeing(settings)
    return BlindEngine(engine) if settings.persona == "hidden" else engine


def _load_seeing(settings: EngineSettings) -> Engine:
    if settings.engine == "packed":
        from polypersona.engines.packed import PackedEngine

        return PackedEngine(settings)
    if settings.engine == "vllm":
        from polypersona.engines.vllm import VllmEngine

        return VllmEngine(settings)
    if settings.engine == "endpoint":
        from polypersona.engines.endpoint import EndpointEngine

        return EndpointEngine(settings)
    if settings.engine == "rules":
        from polypersona.engines.rules import RulesEngine

        return RulesEngine(settings)
    if settings.engine == "fake":
        from polypersona.engines.fake import FakeEngine

        return FakeEngine(settings)
    raise EngineError(
        f"There is no engine {settings.engine!r} in this version.{nearest(settings.engine, ENGINES)}",
        f"Choose one of {', '.join(ENGINES)}.",
    )
