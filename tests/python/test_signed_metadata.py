"""Signed metadata: an agent with a secret trusts agents that share it."""

import hashlib
import hmac
import random
import re
import traceback

import pytest
from support import blob as grammar
from support.deadline import until
from support.memory import pattern
from support.mutate import mutations

pytestmark = pytest.mark.beyond_stock

HERE = "127.0.0.1"
SIZE = 4096
SECRET = "correct horse battery staple"
OTHER = "another correct horse"
VARIABLE = "VLLM_NIXL_METADATA_SECRET"
LABEL = b"vnx1 metadata"
BACKEND = b"VNXSIGN"
ADDED = 160  # bytes that a signature adds
UNSIGNED = "the metadata is not signed, but this agent has a metadata_secret"
WRONG = (
    "the signature is wrong: it was made with another secret, or the metadata "
    "was changed"
)


@pytest.fixture(autouse=True)
def no_secret_of_the_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def sign(data, secret=SECRET):
    """Sign as docs/wire.md specifies, independently of our code."""
    plain = grammar.parse(data)
    region = grammar.Region(0, 0, 0, b"\x01\x01" + LABEL + bytes(32))
    section = grammar.Section(BACKEND, 0, [region])
    whole = grammar.write(plain._replace(sections=[*plain.sections, section]))
    key = hmac.digest(LABEL, secret.encode(), "sha256")
    mac = hmac.new(key, whole[:-33], hashlib.sha256).digest()
    return whole[:-33] + mac + b"|"


def strip(data):
    """Return the blob without its signature."""
    found = grammar.parse(data)
    assert found.sections[-1].backend == BACKEND
    return grammar.write(found._replace(sections=found.sections[:-1]))


def refused(here, data, *words):
    """Check that loading is not allowed; the message has these words and not
    the secret."""
    with pytest.raises(here.api.nixlNotAllowedError) as caught:
        here.add(data)
    text = str(caught.value)
    assert text.startswith("NIXL_ERR_NOT_ALLOWED: add_remote_agent: ")
    for word in words:
        assert word in text
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def read_works(here, there, remote, seed):
    local = here.alloc(SIZE)
    here.move(
        "READ", [(local.addr, SIZE, 0)], [(remote.addr, SIZE, 0)], there.name
    )
    assert here.read(local.key) == pattern(seed, SIZE)


@pytest.fixture
def signed(endpoint, other):
    """(initiator here, target), both with the secret; no metadata loaded
    yet."""
    return endpoint(metadata_secret=SECRET), other(metadata_secret=SECRET)


# -- Agents with the same secret ----------------------------------------------


def test_agents_with_the_same_secret_transfer_bytes(signed):
    here, there = signed
    remote = there.alloc(SIZE, seed=1)
    assert here.add(there.metadata()) == there.name.encode()
    read_works(here, there, remote, 1)
    there.add(here.metadata())
    there.send_notif(here.name, b"hello")
    assert here.gather_notifs(1) == [(there.name, b"hello")]


def test_signature_matches_the_documentation(signed):
    here, there = signed
    there.alloc(SIZE)
    data = there.metadata()
    plain = strip(data)
    assert len(data) == len(plain) + ADDED
    assert data == sign(plain)
    assert here.add(sign(plain)) == there.name.encode()


@pytest.mark.parametrize("connection", [True, False])
def test_partial_metadata_is_signed(signed, connection):
    here, there = signed
    told, hidden = there.alloc(SIZE, seed=2), there.alloc(SIZE)
    first = there.partial_metadata([], True)
    part = there.partial_metadata([told.key], connection)
    for data in (first, part):
        refused(here, strip(data), there.name, UNSIGNED)
        assert data == sign(strip(data))
    here.add(first)
    here.add(part)
    read_works(here, there, told, 2)
    with pytest.raises(here.api.nixlNotFoundError):
        here.prepare(there.name, [(hidden.addr, SIZE, 0)])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_signed_metadata_may_be_any_buffer(signed, kind):
    here, there = signed
    remote = there.alloc(SIZE, seed=5)
    data = there.metadata()
    (changed,) = flipped(data, [8 * (len(data) - 2)])
    refused(here, kind(changed), WRONG)
    assert here.add(kind(data)) == there.name.encode()
    read_works(here, there, remote, 5)


def test_signed_metadata_is_loaded_again(signed):
    here, there = signed
    for seed in range(3):
        remote = there.alloc(SIZE, seed=seed)
        here.add(there.metadata())
        read_works(here, there, remote, seed)


def test_agent_without_a_secret_accepts_signed_metadata(endpoint, other):
    here, there = endpoint(), other(metadata_secret=SECRET)
    remote = there.alloc(SIZE, seed=3)
    first = there.partial_metadata([], True)
    for data in (first, there.partial_metadata([remote.key], False)):
        assert here.add(data) == there.name.encode()
    read_works(here, there, remote, 3)
    here.add(there.metadata())
    read_works(here, there, remote, 3)


# -- Agents without it --------------------------------------------------------


def test_unsigned_metadata_is_refused(endpoint, other):
    here, there = endpoint(metadata_secret=SECRET), other()
    there.alloc(SIZE)
    refused(here, there.metadata(), f"peer '{there.name}': {UNSIGNED}")
    refused(here, there.partial_metadata([], True), UNSIGNED)
    assert not here.agent.check_remote_metadata(there.name)
    assert here.agent.describe()["peers"] == 0


def test_metadata_signed_with_another_secret_is_refused(endpoint, other):
    here = endpoint(metadata_secret=SECRET)
    there = other(metadata_secret=OTHER)
    refused(here, there.metadata(), f"peer '{there.name}': {WRONG}")
    assert not here.agent.check_remote_metadata(there.name)


def test_refused_blob_does_not_affect_a_known_peer(signed, endpoint):
    """Even a blob with the right name does not replace it."""
    here, there = signed
    remote = there.alloc(SIZE, seed=4)
    here.add(there.metadata())
    generation = here.agent.describe(there.name)["generation"]
    refused(here, strip(there.metadata()), UNSIGNED)
    refused(here, sign(strip(there.metadata()), OTHER), WRONG)
    stranger = endpoint(there.name)
    refused(here, stranger.metadata(), UNSIGNED)
    assert here.agent.describe(there.name)["generation"] == generation
    read_works(here, there, remote, 4)


def test_non_metadata_has_its_own_error(api, endpoint):
    here = endpoint(metadata_secret=SECRET)
    for data in (b"", b"x", b"nixlSerDes", bytes(500)):
        with pytest.raises(api.nixlMismatchError, match="metadata byte"):
            here.add(data)


def test_claimed_name_is_escaped_in_errors(endpoint):
    here = endpoint(metadata_secret=SECRET)
    claimed = grammar.write(
        grammar.Blob(b"evil\n\x1b[2J" + b"x" * 500, {}, [])
    )
    with pytest.raises(here.api.nixlNotAllowedError) as caught:
        here.add(claimed)
    text = str(caught.value)
    assert "peer 'evil" in text
    assert text.isprintable()
    assert len(text) < 400


# -- Modified blobs -----------------------------------------------------------


def flipped(data, bits):
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def must_be_refused(here, blobs):
    api = here.api
    for data in blobs:
        with pytest.raises((api.nixlNotAllowedError, api.nixlMismatchError)):
            here.add(data)


def test_every_flipped_bit_of_a_blob_is_refused(inproc, endpoint):
    here, there = (endpoint(metadata_secret=SECRET) for _ in range(2))
    there.alloc(SIZE)
    data = there.metadata()
    must_be_refused(here, flipped(data, range(8 * len(data))))
    assert here.agent.describe()["peers"] == 0
    assert here.add(data) == there.name.encode()


def test_flipped_bits_of_a_large_blob_are_refused(inproc, endpoint):
    here, there = (endpoint(metadata_secret=SECRET) for _ in range(2))
    block = there.alloc(1 << 20, register=False)
    rows = [(block.addr + i * 1024, 1024, 0, "") for i in range(1024)]
    there.agent.register_memory(rows, "DRAM")
    data = there.metadata()
    dice = random.Random(1)
    bits = [dice.randrange(8 * len(data)) for _ in range(2000)]
    must_be_refused(here, flipped(data, bits))
    assert here.add(data) == there.name.encode()


def test_a_blob_that_was_cut_or_lengthened_is_refused(inproc, endpoint):
    here, there = (endpoint(metadata_secret=SECRET) for _ in range(2))
    there.alloc(SIZE)
    data = there.metadata()
    must_be_refused(here, (data[:end] for end in range(len(data))))
    must_be_refused(here, (data[start:] for start in range(1, len(data))))
    must_be_refused(here, (data + tail for tail in (b"|", b"\0", data)))
    assert here.add(data) == there.name.encode()


def test_damage_of_every_kind_is_refused(inproc, endpoint):
    here, there = (endpoint(metadata_secret=SECRET) for _ in range(2))
    block = there.alloc(SIZE)
    good = [
        there.metadata(),
        there.partial_metadata([block.key], True),
        there.partial_metadata([block.key], False),
    ]
    changed = [
        data for data in mutations(5, good, 1000) if bytes(data) not in good
    ]
    assert len(changed) > 900
    must_be_refused(here, changed)


def test_signature_is_valid_for_its_blob_only(inproc, endpoint):
    here, there, third = (endpoint(metadata_secret=SECRET) for _ in range(3))
    there.alloc(SIZE)
    data, other = there.metadata(), third.metadata()
    refused(here, data[:-ADDED] + other[-ADDED:], there.name, WRONG)
    part = there.partial_metadata([], True)
    refused(here, data[:-ADDED] + part[-ADDED:], there.name, WRONG)


def test_second_signature_is_refused(inproc, endpoint):
    """The last section is the signature and covers everything before it."""
    here, there = (endpoint(metadata_secret=SECRET) for _ in range(2))
    there.alloc(SIZE)
    data = there.metadata()
    found = grammar.parse(data)
    *sections, signature = found.sections

    def with_sections(*these):
        return grammar.write(found._replace(sections=list(these)))

    for forged in (
        with_sections(*sections, signature, signature),
        with_sections(signature, *sections),
        with_sections(signature, *sections, signature),
        with_sections(
            *sections, signature._replace(regions=signature.regions * 2)
        ),
        data + data[-ADDED:],
    ):
        must_be_refused(here, [forged])
    assert here.add(data) == there.name.encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\x01\x01" + LABEL, b"\x02\x01" + LABEL),
        lambda data: data.replace(b"\x01\x01" + LABEL, b"\x01\x00" + LABEL),
        lambda data: data.replace(LABEL, b"vnx1 sessions"),
    ],
    ids=["version", "algorithm", "label"],
)
def test_signature_header_cannot_be_changed(endpoint, change):
    here, there = (endpoint(metadata_secret=SECRET) for _ in range(2))
    data = there.metadata()
    assert change(data) != data
    must_be_refused(here, [change(data)])


def test_a_mac_under_the_bare_secret_is_refused(endpoint):
    """The key is derived from the secret: values computed by a side channel
    with the same secret are not valid here."""
    here, there = endpoint(metadata_secret=SECRET), endpoint()
    data = sign(there.metadata())
    for key in (
        SECRET.encode(),
        hmac.digest(SECRET.encode(), LABEL, "sha256"),
    ):
        mac = hmac.digest(key, data[:-33], "sha256")
        refused(here, data[:-33] + mac + b"|", WRONG)
    assert here.add(data) == there.name.encode()


# -- Each way to load metadata ------------------------------------------------


@pytest.fixture
def listening(endpoint):
    def make(**config):
        return endpoint(enable_listen_thread=True, listen_port=0, **config)

    return make


def test_metadata_listener_sends_signed_metadata(listening, endpoint):
    left = listening(metadata_secret=SECRET)
    right = endpoint(metadata_secret=SECRET)
    block = right.alloc(SIZE)
    port = left.agent.listen_port
    right.agent.fetch_remote_metadata(left.name, HERE, port)
    until(lambda: right.knows(left.name), "the answer")
    right.send_partial([], HERE, port)
    until(lambda: left.knows(right.name), "a part of its metadata")
    right.agent.send_local_metadata(HERE, port)
    until(lambda: left.knows(right.name, block), "all of its metadata")


def test_metadata_listener_refuses_unsigned_metadata(listening, endpoint):
    left = listening(metadata_secret=SECRET)
    port = left.agent.listen_port

    def failures():
        return left.agent.stats()["listener_load_failures"]

    for count, secret in enumerate((None, OTHER), 1):
        right = endpoint(metadata_secret=secret)
        right.agent.send_local_metadata(HERE, port)
        until(lambda count=count: failures() == count, "a refusal")
        why = left.agent.describe()["metadata_listener"]["last_failure"]
        assert f"peer '{right.name}'" in why
        assert (WRONG if secret else UNSIGNED) in why
        assert not left.knows(right.name)


def test_fetch_refuses_unsigned_metadata(listening, endpoint):
    left, right = listening(), endpoint(metadata_secret=SECRET)
    right.agent.fetch_remote_metadata(left.name, HERE, left.agent.listen_port)
    until(
        lambda: right.agent.stats()["listener_load_failures"] == 1,
        "a refusal",
    )
    assert not right.knows(left.name)


def test_side_channel_and_signatures_may_share_a_secret(
    endpoint, peer, monkeypatch
):
    """Both use the same secret: values computed by one are not valid for the
    other, and they do not disturb each other."""
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_SECRET", SECRET)
    here = endpoint(metadata_secret=SECRET)
    there = peer(metadata_secret=SECRET)
    stranger = peer()
    remote = there.alloc(SIZE, seed=6)
    for other in (there, stranger):
        port = other.call(
            "start_side_channel_listener", 0, other.metadata(), HERE
        )
        data = here.agent.request_remote_metadata(HERE, port)
        if other is there:
            assert here.add(data) == there.name.encode()
        else:
            refused(here, data, stranger.name, UNSIGNED)
    read_works(here, there, remote, 6)


def test_a_raw_agent_signs_too(api, endpoint, names, monkeypatch):
    monkeypatch.setenv(VARIABLE, SECRET)
    here = endpoint()
    raw = api.nixlAgent(names(), api.nixlAgentConfig())
    try:
        raw.createBackend("UCX", {})
        data = raw.getLocalMD()
        assert data == sign(strip(data))
        assert raw.loadRemoteMD(here.metadata()) == here.name.encode()
        with pytest.raises(api.nixlNotAllowedError):
            raw.loadRemoteMD(strip(here.metadata()))
    finally:
        raw._agent.close()


# -- The configuration -------------------------------------------------------


def works_together(here, *others):
    for there in others:
        here.add(there.metadata())
        here.remove(there.name)


def test_secret_may_be_str_or_bytes(endpoint):
    secret = "schlüssel für zwei"
    works_together(
        endpoint(metadata_secret=secret),
        endpoint(metadata_secret=secret.encode()),
    )


@pytest.mark.parametrize(
    "secret", [b"\0" * 8, bytes(range(256)), b"x" * 65535]
)
def test_secret_may_be_any_bytes(endpoint, secret):
    here = endpoint(metadata_secret=secret)
    works_together(here, endpoint(metadata_secret=secret))
    shorter, longer = secret[:-1], secret + b"\0"
    for wrong in (shorter, longer):
        if 8 <= len(wrong) <= 65535:
            refused(here, endpoint(metadata_secret=wrong).metadata(), WRONG)


def test_environment_sets_the_secret(endpoint, monkeypatch):
    given = endpoint(metadata_secret=SECRET)
    monkeypatch.setenv(VARIABLE, SECRET)
    found = endpoint()
    works_together(given, found)
    assert found.agent.describe()["metadata_signed"] is True
    preferred = endpoint(metadata_secret=OTHER)
    refused(found, preferred.metadata(), WRONG)


def test_secret_in_the_environment_may_be_any_bytes(endpoint, monkeypatch):
    """Python represents bytes that are not UTF-8 as lone surrogates."""
    secret = b"\xff\xfe not UTF-8"
    monkeypatch.setenv(VARIABLE, secret.decode("utf-8", "surrogateescape"))
    found = endpoint()
    monkeypatch.delenv(VARIABLE)
    works_together(found, endpoint(metadata_secret=secret))


@pytest.mark.parametrize("secret", ["", "1234567"])
def test_invalid_secret_in_the_environment_is_refused(
    api, names, monkeypatch, secret
):
    """An empty secret differs from none: it may be a mistake that would leave
    the agent without a signature."""
    monkeypatch.setenv(VARIABLE, secret)
    with pytest.raises(api.nixlInvalidParamError, match=VARIABLE) as caught:
        api.NixlAgent(names())
    assert "8 to 65535 bytes" in str(caught.value)
    assert not secret or secret not in str(caught.value)


def test_later_changes_of_the_config_take_effect(api, names, endpoint):
    config = api.nixl_agent_config()
    config.metadata_secret = SECRET
    with api.NixlAgent(names(), config) as agent:
        data = agent.get_agent_metadata()
    assert data == sign(strip(data))


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (SECRET.encode("utf-16")[:6], ValueError),
        ("", ValueError),
        ("x" * 65536, ValueError),
        (12345678, TypeError),
        (bytearray(b"12345678"), TypeError),
        (["12345678"], TypeError),
        (f"{SECRET}\ud800", ValueError),
    ],
)
def test_invalid_secret_set_later_is_refused(api, names, value, error):
    config = api.nixl_agent_config()
    config.metadata_secret = value
    with pytest.raises(error, match="metadata_secret") as caught:
        api.NixlAgent(names(), config)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert getattr(caught.value.__context__, "object", None) is None


# -- Reporting ----------------------------------------------------------------


def test_describe_reports_whether_metadata_is_signed(api, endpoint, names):
    assert endpoint().agent.describe()["metadata_signed"] is False
    here = endpoint(metadata_secret=SECRET)
    assert here.agent.describe()["metadata_signed"] is True
    config = api.nixl_agent_config(backends=[], metadata_secret=SECRET)
    with api.NixlAgent(names(), config) as agent:
        assert agent.describe()["metadata_signed"] is True


def test_secret_is_never_shown(api, signed, capfd):
    here, there = signed
    here.add(there.metadata())
    config = api.nixl_agent_config(metadata_secret=SECRET)
    shown = [
        repr(config),
        str(config),
        repr(here.agent),
        repr(here.agent.describe()),
        repr(here.agent.describe(there.name)),
        repr(here.agent.stats()),
        repr(vars(here.agent)),
    ]
    refused(here, strip(there.metadata()))
    written = capfd.readouterr()
    for text in (*shown, written.out, written.err):
        assert SECRET not in text
    assert "metadata_secret=<hidden>" in shown[0]
    assert "metadata_secret=None" in repr(api.nixl_agent_config())


def test_an_error_does_not_show_a_short_secret(api):
    with pytest.raises(ValueError, match="not 3") as caught:
        api.nixl_agent_config(metadata_secret="abc")
    assert not re.search(r"\babc\b", str(caught.value))
