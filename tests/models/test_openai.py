"""The engine `openai` against a server that falls into one trap at a time; nothing here is a mock of our own side."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import hostile
import numpy as np
import pytest
from PIL import Image

from harness import images
from harness.clock import Monotonic
from harness.errors import ExampleError, ServerError, SettingError, UnknownName
from harness.machine.devices import cpu
from harness.measure.passes import Bench, time_whole
from harness.models.engines import openai
from harness.models.engines.openai import body, endpoint, metrics, salt, stream
from harness.models.engines.openai.model import ServedModel
from harness.models.protocol import Options, Piece, Request, Seen, Thought, Told
from harness.models.weights import Source

QUESTION = "What does the page say? Monday"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(endpoint.KEY_VARIABLE, raising=False)


def model(url: str, name: str = hostile.MODEL, side: int = 128, timeout_s: float = 20) -> ServedModel:
    options = Options(side=side, endpoint=url, settings={"timeout_s": timeout_s})
    made = openai.load(openai.card(name), Source("served"), options)
    assert isinstance(made, ServedModel)
    return made


@contextmanager
def served(trap: str = "", *, examine: bool = True, side: int = 128) -> Iterator[ServedModel]:
    with hostile.serve(trap) as server:
        made = model(server.url, side=side)
        try:
            if examine:
                made.examine(Monotonic())
            yield made
        finally:
            made.close()


def page(width: int = 96, height: int = 64, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def request(data: bytes | None = None, tokens: int = 16) -> Request:
    return Request((data or page(),), QUESTION, tokens)


def events(made: ServedModel, asked: Request | None = None) -> list[object]:
    return list(made.answer(asked or request()))


def text(made: ServedModel) -> str:
    return "".join(event.text for event in events(made) if isinstance(event, Piece))


def told(made: ServedModel) -> dict[str, object]:
    last = events(made)[-1]
    assert isinstance(last, Told)
    return dict(last.facts())


# --- the traps, by name ---


def test_an_honest_server_is_not_doubted() -> None:
    with served() as made:
        facts = made.describe()
        assert made.doubts == ()
        assert facts["server_repeat"] == facts["server_salted"] == "not seen to be cached"
        assert facts["server_shrinks"] == "not seen"
        assert text(made) == "Monday"


def test_repeats_free() -> None:
    """A repeat costs nothing, so every request sends other bytes of the same picture, and pays in full."""
    with hostile.serve("repeats_free") as server:
        made = model(server.url)
        made.examine(Monotonic())
        assert made.describe()["server_repeat"] == "cached"
        assert made.describe()["server_salted"] == "not seen to be cached"
        assert made.doubts == ()
        before = len(server.bodies)
        for _ in range(3):
            events(made)
        sent = [json.dumps(one["messages"]) for one in server.bodies[before:]]
        assert len(set(sent)) == 3
        assert told(made)["cached_tokens"] == 0
        made.close()


def test_cached_tokens_zero() -> None:
    """`cached_tokens: 0` is not "nothing cached": the time says that it is."""
    with served("cached_tokens_zero") as made:
        assert made.describe()["server_repeat"] == "cached"


def test_hashes_pixels() -> None:
    with served("hashes_pixels", side=256) as made:
        assert made.describe()["server_salted"] == "cached"
        assert "knows a picture again by its pixels" in "; ".join(made.doubts)


def test_error_event() -> None:
    """HTTP 200, then an error, then [DONE]: a failure with the server's words, never an empty answer."""
    with served("error_event", examine=False) as made, pytest.raises(ServerError, match="CUDA out of memory"):
        events(made)


def test_role_first() -> None:
    """The empty chunk that says who speaks is no token: TTFT waits for the first text."""
    with served("role_first", examine=False) as made:
        first = next(made.answer(request()))
        assert first == Piece("M")


def test_few_chunks() -> None:
    """Chunks are not tokens: what was made is what the server counts."""
    with served("few_chunks", examine=False) as made:
        facts = told(made)
        assert (facts["chunks"], facts["output_tokens"]) == (2, 7)


def test_no_usage() -> None:
    with served("no_usage") as made:
        assert "no time per output token" in "; ".join(made.doubts)
        last = events(made)[-1]
        assert isinstance(last, Told)
        assert last.output_tokens is None


def test_usage_apart() -> None:
    with served("usage_apart", examine=False) as made:
        assert told(made)["output_tokens"] == 7


def test_rejects_fields() -> None:
    with served("rejects_fields") as made:
        facts = made.describe()
        for name in ("seed", "top_k", "ignore_eos", "stream_options"):
            assert facts[f"server_field_{name}"] == "rejected (HTTP 422)"
        assert facts["server_field_temperature"] == "taken"
        assert text(made) == "Monday"


def test_takes_fields_silently() -> None:
    """A field that is taken and does nothing is told from one that holds."""
    with served("takes_fields_silently") as made:
        assert made.describe()["server_field_ignore_eos"] == "ignored (5 of 8 tokens)"
    with served() as made:
        assert made.describe()["server_field_ignore_eos"] == "holds"


@pytest.mark.parametrize(
    ("trap", "found", "words"),
    [("shrinks", "perhaps", "limits the size"), ("one_size", "one size", "brings every picture to one size")],
)
def test_shrinks(trap: str, found: str, words: str) -> None:
    with served(trap, side=384) as made:
        assert made.describe()["server_shrinks"] == found
        assert words in "; ".join(made.doubts)


def test_comments() -> None:
    with served("comments", examine=False) as made:
        assert events(made)[0] == Piece("M")


def test_half_characters() -> None:
    """A character whose bytes come one by one is one character."""
    with served("half_characters", examine=False) as made:
        assert text(made).startswith("é日")


def test_slow_first() -> None:
    """The first request loads the model: the probes send one before they compare anything."""
    with served("slow_first") as made:
        assert made.describe()["server_repeat"] == "not seen to be cached"


def test_empty() -> None:
    with served("empty", examine=False) as made, pytest.raises(ServerError, match=r"empty answer \(finish_reason stop"):
        events(made)


@pytest.mark.parametrize("trap", ["cut", "broken"])
def test_cut(trap: str) -> None:
    """Half an answer is no answer."""
    with served(trap, examine=False) as made, pytest.raises(ServerError, match=r"the (stream ended|connection broke)"):
        events(made)


def test_no_stream() -> None:
    with served("no_stream", examine=False) as made, pytest.raises(ServerError, match=r"did not stream.*all at once"):
        events(made)


def test_busy() -> None:
    with served("busy", examine=False) as made:
        with pytest.raises(ServerError, match=r"HTTP 503 .*loading") as caught:
            events(made)
        assert caught.value.busy
        assert text(made) == "Monday"


def test_probes_wait_for_a_server_that_is_busy() -> None:
    with served("busy") as made:
        assert made.doubts == ()


def test_closes_idle() -> None:
    """A connection that the server closed is opened anew before the clock starts."""
    with hostile.serve("closes_idle") as server:
        made = model(server.url)
        for number in range(1, 4):
            with suppress(ServerError):  # if the close comes just behind our look, it is said and asked again
                told(made)
                assert server.connections == number
                continue
            told(made)
            assert server.connections == number
        made.close()


def test_one_connection_is_kept_open() -> None:
    with hostile.serve() as server:
        made = model(server.url)
        made.examine(Monotonic())
        assert [told(made)["output_tokens"] for _ in range(3)] == [7] * 3
        assert server.connections == 1
        made.close()


def test_reasoning() -> None:
    """Reasoning text is timed apart and is no part of the answer."""
    with served("reasoning", examine=False) as made:
        found = events(made)
        assert found[:3] == [Thought(text) for text in hostile.THOUGHTS]
        assert found[3] == Piece("M")
        measured, _, answer = time_whole(made, request(), bench())
        assert measured.ttft_ns is not None
        assert measured.thought_ns == measured.thoughts_ns[0]
        assert len(measured.thoughts_ns) == measured.server["thought_chunks"] == len(hostile.THOUGHTS)
        assert max(measured.thoughts_ns) < measured.ttft_ns
        assert measured.output_tokens == len("Monday") + 1 + hostile.THOUGHT_TOKENS
        assert answer == "Monday"


def test_reasoning_only() -> None:
    with served("reasoning_only", examine=False) as made, pytest.raises(ServerError, match="reasoning text alone"):
        events(made)


def test_tells_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may repeat the key in its refusal: no error has it."""
    monkeypatch.setenv(endpoint.KEY_VARIABLE, "sk-secret-123")
    with hostile.serve("tells_key") as server:
        made = model(server.url)
        for ask in (lambda: made.examine(Monotonic()), lambda: events(made)):
            with pytest.raises(ServerError, match=r"HTTP 401.*Incorrect API key") as caught:
                ask()
            assert "secret" not in str(caught.value)
        made.close()


def test_other_name() -> None:
    with served("other_name") as made:
        assert "'another/model' answered" in "; ".join(made.doubts)


def test_echoes() -> None:
    """Text that comes before the model has made any, as a parser's repeated prompt: seen with a real server."""
    with served("echoes") as made:
        assert "what the model has not made" in "; ".join(made.doubts)


def test_a_wrong_name_lists_what_is_there() -> None:
    with hostile.serve() as server:
        made = model(server.url, "hostile/tinny")
        with pytest.raises(UnknownName, match=r"did you mean 'hostile/tiny'.*known: hostile/tiny"):
            made.examine(Monotonic())
        with pytest.raises(ServerError, match=r"HTTP 404 .*`hostile/tinny` does not exist"):
            events(made)
        made.close()


def test_a_server_that_is_not_there() -> None:
    with hostile.serve() as server:
        url = server.url
    with pytest.raises(ServerError, match=r"no connection.*next: start the server") as caught:
        model(url).examine(Monotonic())
    assert caught.value.gone


# --- what is sent, and when ---


def bench() -> Bench:
    clock = Monotonic()
    return Bench(cpu.open("cpu", clock), clock)


def test_nothing_is_sent_before_the_first_event_is_asked_for() -> None:
    """The body is built and the connection open, but the request leaves only inside the clock."""
    with hostile.serve() as server:
        made = model(server.url)
        stream_of_events = made.answer(request())
        assert server.bodies == []
        next(stream_of_events)
        assert len(server.bodies) == 1
        made.close()


def test_a_generator_closed_early_leaves_no_rest_behind() -> None:
    with served(examine=False) as made:
        begun = made.answer(request())
        next(begun)
        begun.close()  # type: ignore[attr-defined]
        assert text(made) == "Monday"


def test_files_are_sent_as_they_are_and_resized_only_where_asked() -> None:
    for kind in ("PNG", "JPEG"):
        own = body.show(page(kind=kind), 0)
        assert own.data == page(kind=kind)
        assert own.conversions == ()
    webp = body.show(page(kind="WEBP"), 0)
    assert webp.data.startswith(salt.PNG_START)
    assert webp.conversions == ("sent as PNG",)
    large = body.show(page(96, 64), 192)
    assert large.sent_px == images.decode(large.data).size == (192, 128)
    assert large.conversions == ("resized from 96x64 to 192x128 (bicubic), sent as PNG",)
    assert body.show(page(96, 64), 96).data == page(96, 64)


def test_what_was_sent_is_told() -> None:
    with served(examine=False, side=48) as made:
        seen = next(event for event in events(made) if isinstance(event, Seen))
        assert (seen.original_px, seen.processed_px, seen.content_px) == ((96, 64), (48, 32), 48 * 32)
        assert told(made)["bytes_sent"]


def test_a_broken_image_is_the_examples_fault() -> None:
    with served(examine=False) as made, pytest.raises(ExampleError, match="not a readable image"):
        made.answer(request(b"no image"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_salt_changes_bytes_but_no_pixel(kind: str) -> None:
    data = page(kind=kind)
    first, second = salt.salted(data, "aa"), salt.salted(data, "bb")
    assert first is not None
    assert second is not None
    assert len({data, first, second}) == 3
    for each in (first, second):
        assert np.array_equal(np.asarray(images.decode(each).image), np.asarray(images.decode(data).image))
    with Image.open(io.BytesIO(first)) as image:
        image.load()
        assert image.info.get("Comment", image.info.get("comment")) in ("aa", b"aa")


def test_salt_leaves_the_orientation_of_a_jpeg() -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "JPEG", exif=exif)
    turned = salt.salted(buffer.getvalue(), "aa")
    assert turned
    assert images.decode(turned).size == images.decode(buffer.getvalue()).size == (10, 20)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00", salt.PNG_START])
def test_what_has_no_place_for_a_comment_is_not_salted(data: bytes) -> None:
    assert salt.salted(data, "aa") is None


# --- endpoints and keys ---


@pytest.mark.parametrize(
    ("given", "url", "here"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1", True),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1", True),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1", True),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com:443/v1", False),
        ("http://10.0.0.3:80/openai/v1", "http://10.0.0.3:80/openai/v1", False),
    ],
)
def test_an_endpoint_is_read(given: str, url: str, here: bool) -> None:
    assert endpoint.parse(given).url == url
    assert endpoint.parse(given).here == here


@pytest.mark.parametrize("given", ["http://u:secret@host/v1", "http://host/v1?key=secret", "http://host/v1#secret"])
def test_a_secret_in_the_url_is_refused_without_being_shown(given: str) -> None:
    with pytest.raises(SettingError, match="would stand in every log") as caught:
        endpoint.parse(given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("given", ["localhost:8000", "ftp://host", "", "http://", "http://host:port/v1"])
def test_no_url_is_refused(given: str) -> None:
    with pytest.raises(SettingError, match="--endpoint"):
        endpoint.parse(given)


@pytest.mark.parametrize("value", ["sk-se cret", "sk-secret\nX-Other: 1", "sk-sécret"])
def test_a_key_that_is_none_is_refused_without_being_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY_VARIABLE, value)
    with pytest.raises(SettingError) as caught:
        endpoint.key()
    assert "cret" not in str(caught.value)


# --- streams and the server's own clock ---


def reader(data: bytes, step: int) -> Iterator[bytes]:
    return (data[at : at + step] for at in range(0, len(data), step))


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_events_are_the_same_however_they_are_cut(step: int) -> None:
    data = b': hello\nevent: error\ndata: {"a":\ndata: 1}\n\ndata:x\r\n\r\nid: 7\n\ndata: [DONE]\n\n'
    pieces = reader(data, step)
    assert list(stream.events(lambda: next(pieces, b""))) == [("error", '{"a":\n1}'), ("", "x"), ("", "[DONE]")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"error": "no \\"quotes\\""}', 'no "quotes"'),
        ('{"error": "un"quoted"}', 'no JSON: {"error": "un"quoted"}'),
        ('{"object": "error", "message": "too long"}', "too long"),
        ('{"error": {"code": 7}}', '{"code": 7}'),
        ("[1]", "no chunk"),
    ],
)
def test_errors_keep_the_servers_words(data: str, words: str) -> None:
    with pytest.raises(ServerError) as caught:
        stream.parse("", data)
    assert words in str(caught.value)


def test_vllms_metrics_give_one_requests_times_and_notice_others() -> None:
    page_of = (
        "# TYPE vllm:request_queue_time_seconds histogram\n"
        'vllm:request_queue_time_seconds_bucket{{le="0.3"}} 9\n'
        'vllm:request_queue_time_seconds_sum{{model_name="m",engine="0"}} {sum}\n'
        'vllm:request_queue_time_seconds_count{{model_name="m",engine="0"}} {count}\n'
        'vllm:mm_cache_hits_total{{model_name="m"}} {hits}\n'
    )
    before = metrics.read(page_of.format(sum=1.5, count=3.0, hits=0.0))
    one = metrics.read(page_of.format(sum=1.75, count=4.0, hits=1.0))
    assert metrics.between(before, one) == {"server_queue_ns": 250_000_000, "server_picture_hits": 1}
    three = metrics.read(page_of.format(sum=2.5, count=6.0, hits=1.0))
    assert metrics.between(before, three) == {"server_others": 2, "server_picture_hits": 1}


def test_llama_cpps_timings_are_kept() -> None:
    told_by_it = {"prompt_ms": 12.5, "predicted_ms": 3, "cache_n": 7, "prompt_n": 20}
    assert metrics.of_timings(told_by_it) == {
        "server_prefill_ns": 12_500_000,
        "server_decode_ns": 3_000_000,
        "cached_tokens": 7,
    }
