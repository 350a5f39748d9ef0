"""`harness track`: measure the checkpoints that are new, each beside the pinned baseline, and give one verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError, SettingError, UnknownName
from harness.measure.asked import Asked
from harness.models.card import Hub
from harness.models.synthesis import model_card
from harness.track import arms, jobs, nights, outputs
from harness.track.nights import Night, Reading, Series
from harness.track.verdict import BROKEN, REGRESSION, Judge, Verdict

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is tracked, and how. `beside` measures each night beside the baseline; `latest` skips older new nights."""

    asked: Asked
    checkpoints: tuple[Night, ...]
    out: Path
    baseline: str | None = None
    minimum_effect: float = 0.03
    beside: bool = True
    latest: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """The verdict, and everything it rests on."""

    verdict: Verdict
    judge: Judge
    series: Series

    def write(self, folder: Path) -> list[Path]:
        """Write all outputs."""
        return outputs.write(folder, self.verdict, self.judge, self.series)


def track(wish: Wish, say: Say) -> Tracked:
    """Measure what is new and judge the newest checkpoint. Raises `HarnessError` where nothing could be measured."""
    series = nights.series(wish.asked)
    checkpoints, baseline, readings = _baseline(wish, series, say)
    for number, night in enumerate(checkpoints):
        newest = number == len(checkpoints) - 1
        if night.name == baseline.name:
            continue
        if wish.latest and not newest:
            readings[night.name] = nights.read(wish.out, night.name, series, baseline.name)
        else:
            readings[night.name] = _reading(wish, series, night, baseline, newest, say)
    judge = Judge([readings[night.name] for night in checkpoints], baseline.name, wish.minimum_effect)
    verdict = judge.verdict()
    if wish.latest and verdict.code in (REGRESSION, BROKEN):
        judge = _bisect(wish, series, checkpoints, baseline, readings, say)
        verdict = judge.verdict()
    return Tracked(verdict, judge, series)


def _baseline(wish: Wish, series: Series, say: Say) -> tuple[list[Night], Night, dict[str, Reading]]:
    """Return the nights from the baseline on, the baseline, and the readings that were needed to choose it."""
    known = list(wish.checkpoints)
    if wish.baseline and Path(wish.baseline).is_dir() and wish.baseline not in {night.name for night in known}:
        path = Path(wish.baseline).resolve()
        known = [Night(path.name, path), *(night for night in known if night.name != path.name)]
        wanted: str | None = path.name
    else:
        wanted = wish.baseline
    if wanted is not None:
        names = [night.name for night in known]
        if wanted not in names:
            raise UnknownName("baseline", wanted, names)
        at = names.index(wanted)
        chosen = _alone(wish, series, known[at], say)
        if chosen.state == "broken":
            raise SettingError(f"--baseline {wanted}: {chosen.reason}; next: pin a checkpoint that loads")
        return known[at:], known[at], {wanted: chosen}
    for at, night in enumerate(known):
        found = _alone(wish, series, night, say)
        if found.state != "broken" or at == len(known) - 1:
            return known[at:], night, {night.name: found}
        say(f"{night.name} is broken ({found.reason}): it cannot be the baseline")
    raise SettingError("no checkpoint to track; next: one folder for each nightly checkpoint")


def _alone(wish: Wish, series: Series, night: Night, say: Say) -> Reading:
    found = nights.read(wish.out, night.name, series, None)
    if found.state == "missing" or found.torn:
        found = _measured(wish, series, night, None, say)
    return found


def _reading(wish: Wish, series: Series, night: Night, baseline: Night, newest: bool, say: Say) -> Reading:
    """Return what the logs say of a night, measuring what is missing: the newest always beside the baseline."""
    beside = baseline if wish.beside else None
    found = nights.read(wish.out, night.name, series, baseline.name)
    lacking = found.state == "missing" or found.torn or (newest and beside and found.is_point and not found.rounds)
    return _measured(wish, series, night, beside, say) if lacking else found


def _measured(wish: Wish, series: Series, night: Night, baseline: Night | None, say: Say) -> Reading:
    hub = model_card(wish.asked.model, wish.asked.offline).hub
    patterns = hub.files if hub else Hub("").files
    folder = night.fetched(patterns)
    try:
        arms.arm(wish.asked, str(folder))
        nights.series(arms.arm(wish.asked, str(folder)))
    except HarnessError as error:  # its own nightly.toml is wrong: the other nights are not
        return Reading(night.name, "broken", str(error))
    other = (baseline.name, baseline.fetched(patterns)) if baseline else None
    return jobs.night(wish.asked, series, night.name, folder, other, wish.out, wish.minimum_effect, say)


def _bisect(
    wish: Wish, series: Series, checkpoints: Sequence[Night], baseline: Night, readings: dict[str, Reading], say: Say
) -> Judge:
    """Measure nights between the last good and the first bad one that `--latest` had skipped, halving what is left."""
    while True:
        judge = Judge([readings[night.name] for night in checkpoints], baseline.name, wish.minimum_effect)
        verdict = judge.verdict()
        names = [night.name for night in checkpoints]
        last = names.index(verdict.first_bad) if verdict.first_bad in names else len(names) - 1
        start = max((i for i in range(last) if readings[names[i]].state != "missing"), default=0)
        unknown = [i for i in range(start + 1, last) if readings[names[i]].state == "missing"]
        if not unknown:
            return judge
        middle = checkpoints[unknown[len(unknown) // 2]]
        say(f"looking for the first bad checkpoint: {len(unknown)} between {names[start]} and {names[last]}")
        readings[middle.name] = _reading(wish, series, middle, baseline, True, say)
