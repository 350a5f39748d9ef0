"""The paper's headline ratios: the rows each compares, its split into encode and prefill, the same measured here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.errors import CardError
from harness.reports import marks
from harness.reports.card import Claim, ReportCard, Side
from harness.reports.configuration import Configuration, Platform
from harness.reports.paper.evidence import APART, PAPER, Evidence, fits
from harness.reports.paper.published import cite
from harness.reports.summary import CellSummary
from harness.stats import Estimate


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim on one platform by one protocol, or on none; all ratios are numerator over denominator."""

    claim: Claim
    published: float
    published_encode: float | None
    published_prefill: float | None
    platform: Platform | None = None
    protocol: str = ""
    measured: Estimate | None = None
    encode: Estimate | None = None
    prefill: Estimate | None = None
    matches: bool | None = None
    why_not: str = ""
    marks: tuple[str, ...] = ()
    sides: tuple[CellSummary, ...] = ()
    """The two cells whose times or scores are compared, where there are two."""

    @property
    def verdict(self) -> str:
        """`matches`, `differs by ...`, `undecided, no interval: ...` or `not run here`."""
        if self.measured is None or self.measured.value is None:
            return "not run here"
        if self.matches:
            return "matches"
        told = self._difference(self.measured.value)
        if self.matches is None:
            return f"undecided, no interval: {told}"
        return f"differs{':' if '×' in told else ' by'} {told}"

    def _difference(self, measured: float) -> str:
        if self.claim.quantity == "points":
            return f"{measured - self.claim.claimed:+.1f} points"
        if self.claim.saving:
            return f"{100 * (shown(self.claim, measured) - self.claim.claimed):+.0f} percentage points"
        times = measured / self.claim.claimed
        return f"{times - 1:+.0%}" if 0.5 <= times <= 2 else f"{times:.2g} × the published ratio"


def shown(claim: Claim, ratio: float) -> float:
    """Return a ratio in the claim's own terms: a saving is 1 - denominator/numerator."""
    return 1 - 1 / ratio if claim.saving else ratio


def printed(references: Sequence[str]) -> float | None:
    """Return the sum of the cited figures, or None when none is cited."""
    return sum(float(cite(reference)) for reference in references) if references else None


def findings(card: ReportCard, evidence: Evidence) -> list[Finding]:
    """Return every claim of the card, once for each platform and protocol that measured both sides."""
    return [finding for claim in card.claims for finding in of_claim(claim, evidence)]


def of_claim(claim: Claim, evidence: Evidence) -> list[Finding]:
    """Return what there is about one claim: at least one finding."""
    upper, lower = claim.numerator, claim.denominator
    quantity = "count" if claim.quantity in ("params", "tokens", "points") else claim.quantity
    figures = printed(getattr(upper, quantity)), printed(getattr(lower, quantity))
    published = _less(*figures) if claim.quantity == "points" else _over(*figures)
    if published is None:
        raise CardError(f"claim {claim.name!r}: a side cites no published {quantity}; next: add `{quantity}` to it")
    base = Finding(
        claim,
        published,
        _over(printed(upper.encode), printed(lower.encode)),
        _over(printed(upper.prefill), printed(lower.prefill)),
    )
    if claim.quantity == "points":
        return [_scored(base, evidence)]
    if quantity == "count":
        return [_counted(base, evidence)]
    found = []
    for platform in evidence.platforms([upper, lower]):
        for protocol in PAPER:
            finding = _timed(base, evidence, platform, protocol)
            found += [finding] if finding else []
    return found or [replace(base, why_not=_missing(evidence, upper, lower))]


def _counted(base: Finding, evidence: Evidence) -> Finding:
    upper, lower = base.claim.numerator, base.claim.denominator
    if base.claim.quantity == "params":
        values = [evidence.params_m(side) for side in (upper, lower)]
    else:
        seen = [(side.square_tokens, evidence.tokens(side)) for side in (upper, lower)]
        values = [float(square) if square and pages else pages for square, pages in seen]
    ratio = _over(*values)
    if ratio is None:
        return replace(base, why_not=_missing(evidence, upper, lower))
    return replace(
        base, measured=Estimate(ratio, None, None, 1), protocol="counted", matches=_fits(base.claim, ratio, ratio)
    )


def _scored(base: Finding, evidence: Evidence) -> Finding:
    claim = base.claim
    scores = [evidence.score(side, (claim.suite,)) for side in (claim.numerator, claim.denominator)]
    upper, lower = (score.estimate for score in scores)
    if upper is None or lower is None or upper.value is None or lower.value is None:
        return replace(base, why_not=f"no scores of both sides: {scores[0].why_not or scores[1].why_not}")
    ends = (upper.low, upper.high, lower.low, lower.high)
    low = high = None
    if None not in ends:  # the questions are the same, so this is too wide rather than too narrow
        half = (((upper.high or 0) - (upper.low or 0)) ** 2 + ((lower.high or 0) - (lower.low or 0)) ** 2) ** 0.5 / 2
        low, high = upper.value - lower.value - half, upper.value - lower.value + half
    found = Estimate(upper.value - lower.value, low, high, min(upper.n, lower.n))
    least, most = (found.value if end is None else end for end in (low, high))
    assert least is not None
    assert most is not None
    near = least - claim.tolerance <= claim.claimed <= most + claim.tolerance
    carried = marks.of_all(score.marks for score in scores)
    sides = tuple(source for score in scores for source in score.sources)
    return replace(base, measured=found, protocol="scored", matches=near, marks=carried, sides=sides)


def _timed(base: Finding, evidence: Evidence, platform: Platform, protocol: str) -> Finding | None:
    upper, lower = base.claim.numerator, base.claim.denominator
    quantity = base.claim.quantity
    cells = [evidence.cells(side, platform, protocol, (quantity,)) for side in (upper, lower)]
    pair = evidence.pair(*cells)
    ratio = evidence.ratio(*pair, quantity) if pair else None
    if pair is None or ratio is None or ratio.value is None:
        return None
    return replace(
        base,
        platform=platform,
        protocol=protocol,
        measured=ratio,
        encode=evidence.ratio(*pair, "encode"),
        prefill=evidence.ratio(*pair, "prefill"),
        matches=fits(_fits(base.claim, ratio.low or ratio.value, ratio.high or ratio.value), ratio, _ratio(base.claim)),
        marks=marks.of_all(one.marks for one in pair),
        sides=pair,
    )


def _ratio(claim: Claim) -> float:
    return 1 / (1 - claim.claimed) if claim.saving else claim.claimed


def _fits(claim: Claim, low: float, high: float) -> bool:
    """Whether the claimed ratio lies in our interval widened by the tolerance (of the ratio; of a saving: absolute)."""
    if claim.saving:
        return shown(claim, low) - claim.tolerance <= claim.claimed <= shown(claim, high) + claim.tolerance
    return low * (1 - claim.tolerance) <= claim.claimed <= high * (1 + claim.tolerance)


def _missing(evidence: Evidence, *sides: Side) -> str:
    never = [side for side in sides if side.model is None]
    if never:
        return "; ".join(f"no card of this harness is {side.title}" for side in never)
    absent = [side for side in sides if not evidence.platforms([side])]
    there = [one for side in sides if side not in absent and (one := _measured(evidence, side)) is not None]
    if not absent:
        places = [(where, protocol) for where in evidence.platforms(sides) for protocol in PAPER]
        same = any(all(evidence.cells(side, *place) for side in sides) for place in places)
        other = "measured, but never on the same machine, device and precision by the same protocol"
        return f"both sides were {APART if same else other}" + _next(sides[:1], there[1:])
    return "not measured" + _next(absent, there)


def _measured(evidence: Evidence, side: Side) -> CellSummary | None:
    """Return the cell of a side that another one is best measured to go with: by the paper's protocol, where it was."""
    places = [(where, protocol) for where in evidence.platforms([side]) for protocol in reversed(PAPER)]
    return next((one for place in places for one in evidence.cells(side, *place)), None)


def _next(wanted: Sequence[Side], there: Sequence[CellSummary]) -> str:
    """Return how to measure these sides so that they pair with what is there already, or else with each other."""
    like = there[0].cell if there else None
    said = _flags(like) if like else "--suite pages --protocol paper"
    where = f"on {like.machine}, " if like else ""
    runs = []
    for side in wanted:
        given = [f"--model {side.model}", f"--res {side.resolution}" if side.resolution else "", said]
        given += [f"--set {setting}" for setting in side.settings.split()]
        runs.append(f"`harness run {' '.join(filter(None, given))}`")
    return f"; next: {where}" + " and ".join(runs)


def _flags(cell: Configuration) -> str:
    """Return the flags of `harness run` by which another model's times are comparable with this cell's."""
    data = "--data THE-SAME-FILE" if cell.data == "local" else ""
    limit = f"--limit {cell.limit}" if cell.limit is not None else ""
    engine = "" if cell.engine == "torch" else f"--engine {cell.engine}"
    threads = f"--threads {cell.threads}" if cell.threads is not None else ""
    protocol = "" if cell.protocol == "ttft" else f"--protocol {cell.protocol}"
    whole = "--isolate-stages" if cell.isolate else ""
    flags = (f"--suite {cell.suite}", data, limit, f"--device {cell.device}", engine, f"--dtype {cell.dtype}", threads)
    return " ".join(filter(None, (*flags, protocol, whole)))


def _over(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or not lower else upper / lower


def _less(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or lower is None else upper - lower
