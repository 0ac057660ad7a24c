"""The hub, and one that misbehaves."""

import pytest

import jax_edm2
from tests.jax_edm2.remote.outcomes import REPO, fails, first_time, same
from tests.support.hub import Hub, serve_range


def test_a_revision_is_pinned(hub, file):
    first = hub.commit(REPO, {"digits.safetensors": file})
    hub.commit(REPO, {"digits.safetensors": b"something else"})
    assert jax_edm2.read_record(f"hf://{REPO}@{first}/digits.safetensors").config.img_resolution == 8
    fails(f"hf://{REPO}/digits.safetensors", "is no safetensors file")


def test_a_branch_that_moves_is_not_followed(hub, file):
    """What was opened is read to its end, as it was."""
    hub.commit(REPO, {"digits.safetensors": file})

    def move(handler, number):
        if number == 1:
            hub.commit(REPO, {"digits.safetensors": b"x" * len(file)})
        return False

    hub.answer = move
    jax_edm2.load(f"hf://{REPO}/digits.safetensors")
    assert len(hub.commits[REPO]) == 2


def test_a_private_repository(hub, file, monkeypatch):
    hub.commit(REPO, {"digits.safetensors": file})
    hub.private.add(REPO)
    fails(
        f"hf://{REPO}/digits.safetensors", "no such repository, or not for who you are: is the name right? Else set HF"
    )
    monkeypatch.setenv("HF_TOKEN", Hub.TOKEN)
    jax_edm2.read_record(f"hf://{REPO}/digits.safetensors")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("hf://nobody/nothing/x.safetensors", "no such repository"),
        (f"hf://{REPO}@old/digits.safetensors", "no such revision"),
        (f"hf://{REPO}/x.safetensors", "no such file"),
    ],
)
def test_what_the_hub_does_not_have(hub, url, text):
    hub.commit(REPO, {"digits.safetensors": b""})
    fails(url, text)


@pytest.mark.parametrize(("options", "text"), [({"shift": 1}, "was it changed?"), ({"whole": True}, "answers 200")])
def test_the_hub_sends_another_range(hub, file, options, text):
    hub.commit(REPO, {"digits.safetensors": file})
    hub.answer = lambda handler, number: number >= 3 and (serve_range(handler, file, **options), True)[1]
    fails(f"hf://{REPO}/digits.safetensors", text)


def test_the_hub_cuts_connections(hub, file, digits, monkeypatch):
    hub.commit(REPO, {"digits.safetensors": file})
    new = first_time()
    hub.answer = lambda handler, number: new(handler.headers["Range"]) and (serve_range(handler, file, cut=10), True)[1]
    same(jax_edm2.load(f"hf://{REPO}/digits.safetensors")[1], digits[1])
    hub.answer = lambda handler, number: (serve_range(handler, file, cut=10), True)[1]
    fails(f"hf://{REPO}/digits.safetensors", "the connection to the hub breaks off, 6 times in a row")


@pytest.mark.parametrize(
    ("status", "text"), [(503, "answers 503"), (429, "answers 429"), (403, "answers 403; set HF_")]
)
def test_the_hub_refuses(hub, file, status, text):
    hub.commit(REPO, {"digits.safetensors": file})
    hub.answer = lambda handler, number: (handler.reply(status), True)[1]
    fails(f"hf://{REPO}/digits.safetensors", text)
    assert hub.gets == (1 if status == 403 else 6)


def test_a_hub_that_is_busy_once(hub, file):
    hub.commit(REPO, {"digits.safetensors": file})
    new = first_time()
    hub.answer = lambda handler, number: new(handler.headers["Range"]) and (handler.reply(503), True)[1]
    jax_edm2.load(f"hf://{REPO}/digits.safetensors")
