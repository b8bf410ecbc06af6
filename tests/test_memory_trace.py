"""The trace of GPU memory: the allocator's replay by hand, decode steps that are made, and the plan within its limits."""

import pytest
from fake_cuda.allocator import MIB, Event, Usage, replay


def log(*lines: tuple[int, float]) -> list[Event]:
    """Events from (block, MiB); 0 MiB: released."""
    return [Event(block, int(size * MIB)) for block, size in lines]


def test_small_requests_share_a_segment_of_two_mebibytes_in_units_of_512_bytes() -> None:
    events = [Event(number, 1) for number in range(4096)]
    assert replay(events) == Usage(reserved=2 * MIB, allocated=4096 * 512)
    assert replay([*events, Event(4096, 1)]).reserved == 4 * MIB


def test_requests_of_less_than_ten_mebibytes_share_segments_of_twenty() -> None:
    assert replay(log((1, 9), (2, 9))) == Usage(20 * MIB, 18 * MIB)
    assert replay(log((1, 9), (2, 9), (3, 9))).reserved == 40 * MIB
    assert replay(log((1, 0.5), (2, 9))).reserved == 22 * MIB  # the small pool is another one


def test_larger_requests_get_their_size_rounded_up_to_two_mebibytes() -> None:
    assert replay(log((1, 10))).reserved == 10 * MIB
    assert replay(log((1, 100.5), (2, 31))) == Usage((102 + 32) * MIB, int(131.5 * MIB))


def test_the_best_fit_is_taken_and_split() -> None:
    """Free are 40 and 30 MiB. 25 takes the 30; 5 takes what is left of it; then 40 takes the other one whole."""
    events = log((1, 40), (2, 30), (1, 0), (2, 0), (3, 25), (4, 5), (5, 40))
    assert replay(events) == Usage(70 * MIB, 70 * MIB)


def test_a_rest_of_at_most_one_mebibyte_is_not_split_off_a_large_block() -> None:
    split = log((1, 40), (1, 0), (2, 38), (3, 1.5))
    assert replay(split).reserved == 40 * MIB
    unsplit = log((1, 40), (1, 0), (2, 39), (3, 1.5))
    assert replay(unsplit).reserved == 60 * MIB


def test_released_neighbours_merge() -> None:
    """Three blocks of 6 MiB in one segment of 20. Side by side, two of them make room for 12; with one between, not."""
    three = ((1, 6), (2, 6), (3, 6))
    assert replay(log(*three, (1, 0), (2, 0), (4, 9.5))).reserved == 20 * MIB
    assert replay(log(*three, (1, 0), (3, 0), (4, 9.5))).reserved == 40 * MIB


def test_a_cache_that_grows_leaves_pieces_of_no_use_unless_segments_expand() -> None:
    """Each copy is larger than the one before, which is released after it."""
    events = []
    for step in range(8):
        events.append(Event(step, (100 + 2 * step) * MIB))
        if step:
            events.append(Event(step - 1, 0))
    assert replay(events) == Usage(sum((100, 102, 104, 106, 108, 110, 112, 114)) * MIB, (112 + 114) * MIB)
    assert replay(events, expandable=True).reserved < 350 * MIB


def test_an_expandable_segment_grows_by_pages_and_reuses_its_end() -> None:
    """100 MiB are five pages of 20. Released, they serve 110 with one page more; a pool of its own has small pages."""
    assert replay(log((1, 100)), expandable=True).reserved == 100 * MIB
    assert replay(log((1, 100), (1, 0), (2, 110)), expandable=True).reserved == 120 * MIB
    assert replay(log((1, 100), (2, 1)), expandable=True).reserved == 102 * MIB


def test_the_release_of_an_unknown_block_is_ignored() -> None:
    assert replay(log((1, 12), (7, 0), (2, 12))) == Usage(24 * MIB, 24 * MIB)


@pytest.mark.parametrize("expandable", [False, True])
def test_what_is_released_can_be_allocated_again(expandable: bool) -> None:
    once = [*log(*((number, 0.3 + 3 * number) for number in range(1, 30)))]
    again = [*once, *log(*((number, 0) for number in range(1, 30))), *once]
    assert replay(again, expandable=expandable) == replay(once, expandable=expandable)
