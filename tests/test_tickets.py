"""pytest tests/test_tickets.py"""

from polypersona.tickets import TicketQueue, Turn


def test_shards_are_handed_out_in_order_whoever_asks():
    queue = TicketQueue(3)
    assert [queue.take("T4", 0).place, queue.take("H100", 0).place, queue.take("H100", 1).place] == [0, 1, 2]


def test_a_ticket_that_is_shown_again_gets_the_same_shard():
    queue = TicketQueue(3)
    assert queue.take("T4", 5) == queue.take("T4", 5) == Turn(0)
    assert queue.take("H100", 5) == Turn(1)


def test_a_ticket_waits_while_others_are_in_flight_and_ends_when_all_are_answered():
    queue = TicketQueue(1)
    queue.take("T4", 0)
    assert queue.take("H100", 0) == Turn(None, must_wait=True)
    queue.settle("T4", 0)
    assert queue.take("H100", 0) == Turn(None)


def test_what_a_lost_pool_holds_goes_to_the_next_in_order():
    queue = TicketQueue(4)
    for ticket in (0, 1):
        queue.take("T4", ticket)
    queue.take("H100", 0)
    assert queue.release("T4") == 2
    assert [queue.take("H100", ticket).place for ticket in (1, 2, 3)] == [0, 1, 3]
    assert queue.take("T4", 0) == Turn(None, must_wait=True)
    assert queue.release("T4") == 0
