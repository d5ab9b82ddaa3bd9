"""Claims about comparing next-token distributions, against scipy on made-up logits."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from scipy.stats import entropy

from steerlens.effects.distributions import compare, score
from steerlens.effects.streams import Stream

N, VOCAB, N_PROMPT = 70, 40, 50
DRAW = torch.Generator().manual_seed(0)
BASE = torch.randn(N, VOCAB, generator=DRAW) * 2
MOVED = BASE + torch.randn(N, VOCAB, generator=DRAW)
IDS = torch.randint(VOCAB, (N,), generator=DRAW).tolist()


@pytest.fixture(scope="module")
def found():
    """Compared over more positions than one chunk holds."""
    streams = [Stream({}, logits.__getitem__) for logits in (BASE, MOVED)]
    return compare(*streams, IDS, N_PROMPT, str)


def test_kl_and_entropies_are_scipys(found):
    log_p, log_q = (log_softmax(one.double().numpy(), axis=-1) for one in (BASE, MOVED))

    np.testing.assert_allclose(found.kl, rel_entr(np.exp(log_q), np.exp(log_p)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(found.entropy_baseline, entropy(np.exp(log_p), axis=-1), rtol=1e-5)
    np.testing.assert_allclose(found.entropy_steered, entropy(np.exp(log_q), axis=-1), rtol=1e-5)
    own = log_q[np.arange(N - 1), IDS[1:]]
    np.testing.assert_allclose(found.logprob_steered[1:], own, rtol=1e-5)
    assert found.logprob_steered[0].isnan()


def test_mean_shifts_are_over_the_positions_that_predict_the_response(found):
    p, q = (torch.softmax(one.double(), -1) for one in (BASE, MOVED))
    mean = (q - p)[N_PROMPT - 1 :].mean(0)

    best = mean.argsort(descending=True)[:3].tolist()
    assert [int(token) for token, _ in found.mean_promoted[:3]] == best
    assert found.mean_promoted[0][1] == pytest.approx(float(mean.max()), rel=1e-4)
    assert int(found.mean_suppressed[0][0]) == int(mean.argmin())


def test_own_text_is_the_baselines_half_of_the_comparison(found):
    logprob, entropies = score(Stream({}, BASE.__getitem__), IDS)

    torch.testing.assert_close(logprob, found.logprob_baseline, equal_nan=True)
    torch.testing.assert_close(entropies, found.entropy_baseline)


def test_equal_streams_differ_by_exactly_nothing():
    stream = Stream({}, BASE.__getitem__)

    same = compare(stream, stream, IDS, N_PROMPT, str)

    assert same.kl.abs().max() == 0
    assert torch.equal(same.entropy_baseline, same.entropy_steered)


def test_a_vocabulary_smaller_than_the_ranking_is_ranked_whole():
    logits = torch.zeros(2, 3)

    found = compare(*[Stream({}, logits.__getitem__)] * 2, [0, 1], 1, str)

    assert len(found.promoted[0]) == 3 and len(found.mean_promoted) == 3
