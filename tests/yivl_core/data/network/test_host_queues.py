from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.network.host_queues import HostQueues


def test_hosts_come_in_turn_and_jobs_of_a_host_in_order():
    queues = HostQueues[int](num_per_host=2, num_in_all=10)
    for number in range(4):
        queues.add("a", number)
    queues.add("b", 10)
    assert [queues.take() for _ in range(4)] == [("a", 0), ("b", 10), ("a", 1), None]
    queues.release("a")
    assert queues.take() == ("a", 2)
    assert queues.take() is None


@given(
    st.lists(
        st.one_of(st.tuples(st.just("add"), st.sampled_from("abc")), st.tuples(st.sampled_from(["take", "release"]), st.none())),
        max_size=80,
    ),
    st.integers(1, 3),
    st.integers(1, 5),
)
def test_limits_hold_nothing_is_lost_and_nothing_waits_that_could_begin(steps, num_per_host, num_in_all):
    queues = HostQueues[int](num_per_host, num_in_all)
    waiting, under_way = [], []
    for number, (step, host) in enumerate(steps):
        if step == "add":
            queues.add(host, number)
            waiting.append((host, number))
        elif step == "take":
            taken = queues.take()
            if taken is None:
                busy = [host for host, _ in under_way]
                assert len(busy) == num_in_all or all(busy.count(host) == num_per_host for host, _ in waiting)
            else:
                waiting.remove(taken)
                under_way.append(taken)
        elif under_way:
            queues.release(under_way.pop(0)[0])
        assert len(under_way) <= num_in_all
        assert all([one for one, _ in under_way].count(host) <= num_per_host for host, _ in under_way)
    while waiting or under_way:
        while (taken := queues.take()) is not None:
            waiting.remove(taken)
            under_way.append(taken)
        queues.release(under_way.pop(0)[0])
