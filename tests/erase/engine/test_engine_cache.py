"""The pool of caches and the blocks in it: nothing is lost when blocks move, grow or go."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from erase.engine.cache import CachePool, SequenceCache, planned_lengths
from erase.methods.base import Cut

CPU = torch.device("cpu")
DEPTH = 2


def pool_of(rows):
    return CachePool(rows, 1, 2, torch.float32, CPU)


def rows_of(start, count):
    return torch.arange(start, start + count, dtype=torch.float32).view(-1, 1, 1).expand(-1, 1, 2)


def held(pool, cache, layer):
    span = cache.span(layer)
    assert torch.equal(pool.values[span], -pool.keys[span])
    return pool.keys[span][:, 0, 0].tolist()


def write_last(pool, span, keys, values):
    pool.write(torch.arange(span.stop - len(keys), span.stop), keys, values)


class Pool(RuleBasedStateMachine):
    """Any sequence of admissions, appends, growth and ends, beside a model of plain lists."""

    def __init__(self):
        super().__init__()
        self.pool = pool_of(60)
        self.number = 0
        self.caches = []

    @rule(planned=st.lists(st.integers(0, 9), min_size=DEPTH, max_size=DEPTH), room=st.integers(0, 4))
    def admit(self, planned, room):
        wanted = sum(planned) + room * DEPTH
        free = self.pool.free
        cache = SequenceCache.create(self.pool, planned, room)
        assert (cache is None) == (wanted > free)
        if cache is not None:
            expected = [self.fill(cache.store, layer, count) for layer, count in enumerate(planned)]
            self.caches.append((cache, expected))

    @precondition(lambda self: self.caches)
    @rule(data=st.data())
    def append(self, data):
        cache, expected = data.draw(st.sampled_from(self.caches))
        count = data.draw(st.integers(0, cache.room))
        for layer, span in enumerate(cache.spans_with(count)):
            expected[layer] += self.fill(partial(write_last, self.pool), span, count)
        cache.commit(count)

    @precondition(lambda self: self.caches)
    @rule(data=st.data(), room=st.integers(1, 8))
    def grow(self, data, room):
        cache, _ = data.draw(st.sampled_from(self.caches))
        missing = max(0, room - cache.room) * DEPTH
        fits = missing <= self.pool.free
        assert cache.grow(room) == fits
        assert cache.room >= room or not fits

    @precondition(lambda self: self.caches)
    @rule(data=st.data())
    def end(self, data):
        cache, expected = data.draw(st.sampled_from(self.caches))
        self.caches.remove((cache, expected))
        cache.free()
        cache.free()

    @invariant()
    def every_sequence_still_has_its_own_rows(self):
        for cache, expected in self.caches:
            assert [held(self.pool, cache, layer) for layer in range(DEPTH)] == expected

    @invariant()
    def what_is_used_is_what_was_taken(self):
        if not self.caches:
            assert self.pool.used == 0
        assert self.pool.used + self.pool.free == self.pool.rows

    def fill(self, write, where, count):
        rows = rows_of(self.number, count)
        self.number += count
        write(where, rows, -rows)
        return rows[:, 0, 0].tolist()


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_rows_of_a_failed_step_do_not_count():
    pool = pool_of(5)
    cache = SequenceCache.create(pool, [3], 2)
    cache.store(0, rows_of(0, 3), -rows_of(0, 3))
    (span,) = cache.spans_with(1)
    write_last(pool, span, rows_of(9, 1), -rows_of(9, 1))
    assert cache.lengths == (3,)
    assert cache.spans_with(1) == [span]
    write_last(pool, span, rows_of(7, 1), -rows_of(7, 1))
    cache.commit(1)
    assert cache.lengths == (4,)
    assert pool.keys[span][:, 0, 0].tolist() == held(pool, cache, 0) == [0, 1, 2, 7]


def test_more_or_fewer_rows_than_planned_are_refused():
    cache = SequenceCache.create(pool_of(5), [3], 1)
    with pytest.raises(ValueError, match="planned for 3 rows, got 2"):
        cache.store(0, rows_of(0, 2), rows_of(0, 2))
    with pytest.raises(ValueError, match="room for 1 more rows, got 2"):
        cache.spans_with(2)


@given(st.integers(0, 5), st.integers(0, 20), st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=3))
def test_planned_lengths_follow_the_cuts_one_by_one(text, vision, cuts):
    depth = 6
    kept = vision
    plan, caches = [], [text + vision] * depth
    for number, (keep, prune) in enumerate(cuts):
        kept = min(kept, keep)
        after = 1 + 2 * number
        plan.append(Cut(after, kept, prune))
        for layer in range(depth):
            if prune or layer >= after:
                caches[layer] = text + kept
    assert planned_lengths(text, vision, plan, depth) == tuple(caches)
