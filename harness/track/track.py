"""`harness track`: measure the checkpoints that are new, each beside the pinned baseline, and give one verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import HarnessError, SettingError, UnknownName
from harness.measure.asked import Asked
from harness.models.card import Hub
from harness.models.synthesis import model_card
from harness.track import contents, jobs, nights, outputs
from harness.track.contents import Content, Contents
from harness.track.nights import Expected, Night, Reading, Series
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
    again: tuple[str, ...] = ()
    """Names of checkpoints that are measured once more, whatever their logs say."""
    notices: tuple[str, ...] = ()
    """What was found on the way to the checkpoints: folders left out, links."""


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
    names = [night.name for night in wish.checkpoints]
    for name in wish.again:
        if name not in names:
            raise UnknownName("checkpoint of --again", name, names)
    return _Tracking(wish, say, nights.series(wish.asked), Contents(wish.asked)).result()


@dataclass(slots=True)
class _Tracking:
    """One command's work: what each night's logs must be of, and what was read of it so far."""

    wish: Wish
    say: Say
    series: Series
    contents: Contents
    readings: dict[str, Reading] = field(default_factory=dict)
    _held: dict[str, Content | None] = field(default_factory=dict)

    def result(self) -> Tracked:
        """Read or measure what is needed, and judge it."""
        wish = self.wish
        checkpoints, baseline = self._baseline()
        for number, night in enumerate(checkpoints):
            newest = number == len(checkpoints) - 1
            if night.name == baseline.name:
                continue
            if wish.latest and not newest:
                self.readings[night.name] = self._read(night, baseline, False)
            else:
                self.readings[night.name] = self._reading(night, baseline, newest)
        judge = self._judge(checkpoints, baseline)
        verdict = judge.verdict()
        if wish.latest and verdict.code in (REGRESSION, BROKEN):
            judge = self._bisect(checkpoints, baseline)
            verdict = judge.verdict()
        notices = dict.fromkeys((*wish.notices, *self._moved(baseline), *verdict.notices))
        return Tracked(replace(verdict, notices=tuple(notices)), judge, self.series)

    def _judge(self, checkpoints: Sequence[Night], baseline: Night) -> Judge:
        return Judge([self.readings[night.name] for night in checkpoints], baseline.name, self.wish.minimum_effect)

    # --- the baseline ---

    def _baseline(self) -> tuple[list[Night], Night]:
        """Return the nights from the baseline on, and the baseline; its reading is kept."""
        known, wanted = list(self.wish.checkpoints), self.wish.baseline
        if wanted and Path(wanted).is_dir() and wanted not in {night.name for night in known}:
            path = Path(wanted).resolve()
            known = [Night(path.name, path), *(night for night in known if night.name != path.name)]
            wanted = path.name
        if wanted is not None:
            names = [night.name for night in known]
            if wanted not in names:
                raise UnknownName("baseline", wanted, names)
            at = names.index(wanted)
            chosen = self._alone(known[at])
            if chosen.state == "broken":
                raise SettingError(f"--baseline {wanted}: {chosen.reason}; next: pin a checkpoint that loads")
            return known[at:], known[at]
        for at, night in enumerate(known):
            found = self._alone(night)
            if found.state != "broken" or at == len(known) - 1:
                return known[at:], night
            self.say(f"{night.name} is broken ({found.reason}): it cannot be the baseline")
        raise SettingError("no checkpoint to track; next: one folder for each nightly checkpoint")

    def _alone(self, night: Night) -> Reading:
        found = self._read(night, None, True)
        if found.state in ("missing", "unready") or found.torn or night.name in self.wish.again:
            found = self._measured(night, None)
        if found.state == "unready":
            what = f"the baseline {night.name} could not be measured tonight"
            raise HarnessError(f"{what}: {found.reason}; next: run the same command again")
        self.readings[night.name] = found
        return found

    def _moved(self, baseline: Night) -> list[str]:
        """Say where earlier nights were compared with another baseline than the one that is chosen by default now."""
        earlier = {path.name.removeprefix("against-") for path in self.wish.out.glob("*/against-*")} - {baseline.name}
        gone = sorted(earlier - {night.name for night in self.wish.checkpoints}, key=nights.natural)
        if self.wish.baseline or not gone:
            return []
        return [
            f"the baseline is {baseline.name} now: {gone[-1]}, with which earlier nights were compared, is not among "
            "the checkpoints any more; --baseline pins one"
        ]

    # --- one night ---

    def _read(self, night: Night, baseline: Night | None, strict: bool) -> Reading:
        """Return what the logs say of a night as it is now; one that cannot be prepared is broken."""
        try:
            expected = self._expected(night, baseline, strict)
        except HarnessError as error:  # its own nightly.toml is wrong: the other nights are not
            return Reading(night.name, "broken", str(error))
        except OSError as error:
            return Reading(night.name, "unready", f"{error.filename or night.name}: {error.strerror}")
        return nights.read(self.wish.out, night.name, expected, baseline.name if baseline else None)

    def _expected(self, night: Night, baseline: Night | None, strict: bool) -> Expected:
        theirs = self._held.get(baseline.name) if baseline else None
        if night.folder is None:  # a commit's content does not change
            return Expected(self.series, Content({}, self.contents.common()) if strict else None, theirs)
        mine = self.contents.of(night.folder, strict)
        if not baseline:
            self._held[night.name] = mine
        return Expected(self.series, mine, theirs)

    def _reading(self, night: Night, baseline: Night, newest: bool) -> Reading:
        """Return what the logs say of a night, measuring what is missing: the newest always beside the baseline."""
        beside = baseline if self.wish.beside else None
        again = night.name in self.wish.again
        found = self._read(night, baseline, newest or again)
        lacking = found.state in ("missing", "unready") or found.torn or again
        alone = newest and beside and found.is_point and not found.rounds
        return self._measured(night, beside) if lacking or alone else found

    def _measured(self, night: Night, baseline: Night | None) -> Reading:
        hub = model_card(self.wish.asked.model, self.wish.asked.offline).hub
        patterns = hub.files if hub else Hub("").files
        folder = night.fetched(patterns)
        try:
            expected = self._expected(night, baseline, True)
        except HarnessError as error:
            return Reading(night.name, "broken", str(error))
        except OSError as error:
            return Reading(night.name, "unready", f"{error.filename or folder}: {error.strerror}")
        torn = contents.unfinished(folder)
        other = (baseline.name, baseline.fetched(patterns)) if baseline else None
        wish, again = self.wish, night.name in self.wish.again
        wanted = jobs.Night(night.name, folder, expected, other, again)
        found = jobs.night(wish.asked, wanted, wish.out, wish.minimum_effect, self.say)
        if found.state == "broken" and torn:  # seen like this once more, and unchanged, it is broken
            return replace(found, state="unready", reason=f"{torn}: is it still being written?")
        return found

    def _bisect(self, checkpoints: Sequence[Night], baseline: Night) -> Judge:
        """Measure nights between the last good and the first bad one that `--latest` skipped, halving what is left."""
        while True:
            judge = self._judge(checkpoints, baseline)
            verdict = judge.verdict()
            names = [night.name for night in checkpoints]
            last = names.index(verdict.first_bad) if verdict.first_bad in names else len(names) - 1
            start = max((i for i in range(last) if self.readings[names[i]].state != "missing"), default=0)
            unknown = [i for i in range(start + 1, last) if self.readings[names[i]].state == "missing"]
            if not unknown:
                return judge
            middle = checkpoints[unknown[len(unknown) // 2]]
            self.say(f"looking for the first bad checkpoint: {len(unknown)} between {names[start]} and {names[last]}")
            self.readings[middle.name] = self._reading(middle, baseline, True)
