"""What a Mac tells of itself, by a made-up library and outputs in its commands' forms: none was at hand."""

import ctypes
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from harness.machine.probes import Readings, Span, mac


class Library:
    """Answers as notify(3) and sysctl(3) do: through pointers, with 0 for success."""

    def __init__(self, thermal: int = 0, memory: int = 1, refuses: bool = False) -> None:
        self.thermal, self.memory, self.refuses = thermal, memory, refuses
        self.registered: list[bytes] = []

    def notify_register_check(self, name: bytes, token: Any) -> int:
        self.registered.append(name)
        token._obj.value = 7
        return int(self.refuses)

    def notify_get_state(self, token: ctypes.c_int, state: Any) -> int:
        assert token.value == 7
        state._obj.value = self.thermal
        return 0

    def sysctlbyname(self, name: bytes, value: Any, size: Any, *_: object) -> int:
        assert (name, size._obj.value) == (b"kern.memorystatus_vm_pressure_level", 4)
        value._obj.value = self.memory
        return -1 if self.refuses else 0


def probe(library: object, asleep: Callable[[], float | None] = lambda: 0.0, told: str = "") -> mac.MacProbe:
    return mac.MacProbe(lambda *command: told, lambda: 0.0, mac.System(library), asleep)


def sample(watching: mac.MacProbe) -> tuple[list[str], Readings]:
    before = watching.read()
    return watching.judge(before, watching.read(), Span(1, 0))


@pytest.mark.parametrize(
    ("library", "reasons", "thermal", "memory"),
    [
        (Library(), [], "nominal", "normal"),
        (Library(thermal=2), ["thermal_pressure"], "heavy", "normal"),
        (Library(memory=2), ["memory_pressure"], "nominal", "warning"),
        (Library(thermal=1, memory=4), ["thermal_pressure", "memory_pressure"], "moderate", "critical"),
        (Library(refuses=True), [], None, None),
        (SimpleNamespace(), [], None, None),
    ],
)
def test_levels_of_the_systems_library(
    library: object, reasons: list[str], thermal: str | None, memory: str | None
) -> None:
    found, told = sample(probe(library))
    assert found == reasons
    assert (told.get("thermal_pressure"), told.get("memory_pressure")) == (thermal, memory)


def test_nothing_is_started_around_a_sample_where_the_library_answers() -> None:
    asked, library = [], Library()
    watching = mac.MacProbe(lambda *command: asked.append(command[0]) or "", lambda: 0.0, mac.System(library))
    for _ in range(3):
        sample(watching)
    assert asked == ["pmset"] * 3  # once for the settings, not around each sample
    assert library.registered == [b"com.apple.system.thermalpressurelevel"]


def test_where_it_does_not_the_command_is_asked() -> None:
    found, _ = sample(probe(SimpleNamespace(), told="com.apple.system.thermalpressurelevel 3\n"))
    assert found == ["thermal_pressure"]


def test_a_sample_in_which_the_machine_slept_is_refused_and_the_first_one_after_it() -> None:
    asleep = iter([5.0, 5.0, 5.0, 8.0, 8.0, 8.0, 60.0, 60.0, 60.0, 60.001])
    watching = probe(Library(), lambda: next(asleep))
    assert [sample(watching)[0] for _ in range(5)] == [[], ["slept"], [], ["slept"], []]
    assert mac.asleep_s() is None or mac.asleep_s() >= 0


REGISTRY = """+-o AGXAcceleratorG13G  <class AGXAcceleratorG13G, id 0x100000001, registered, matched, active, busy 0>
    {
      "gpu-core-count" = 7
      "PerformanceStatistics" = {"recoveryCount"=0,"Device Utilization %"=31,"Renderer Utilization %"=28}
    }
"""


def test_the_registry_is_read() -> None:
    assert (mac.parse_gpu_cores(REGISTRY), mac.parse_gpu_use(REGISTRY)) == (7, 31)
    assert mac.parse_gpu_use('{"Device Utilization %"=0}' + REGISTRY) == 31
    assert mac.parse_gpu_cores("") is mac.parse_gpu_use("") is None


@pytest.mark.skipif(not subprocess._USE_POSIX_SPAWN, reason="this system's C library has no posix_spawn that is used")
def test_commands_are_started_without_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork would copy the page tables of a process that holds a model, just before it is timed."""
    spawned, really = [], subprocess.os.posix_spawn  # type: ignore[attr-defined]

    def spawn(path: str, *arguments: Any, **named: Any) -> int:
        spawned.append(path)
        return int(really(path, *arguments, **named))

    monkeypatch.setattr(subprocess.os, "posix_spawn", spawn)  # type: ignore[attr-defined]
    monkeypatch.setitem(mac.PLACES, "pmset", "/bin/echo")
    assert mac.run_text("pmset", "-g") == "-g\n"
    assert spawned == ["/bin/echo"]
    assert all(path.startswith(("/usr/", "/bin/")) for path in mac.PLACES.values())
