"""What threads say to the event loop: in order, and with few wakes."""

import asyncio
import threading

from videollava_jax.serving.mail import Mail


class Loop:
    """Counts how often it is woken, and calls when it is asked to."""

    def __init__(self):
        self.calls = []

    def call_soon_threadsafe(self, call):
        self.calls.append(call)

    def run(self):
        calls, self.calls = self.calls, []
        for call in calls:
            call()


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_the_engine_wakes_the_loop_once_for_all_that_it_says():
    mail, loop, came = Mail(), Loop(), []
    mail.settled()  # from now on this thread says when it has said everything
    for number in range(100):
        mail.put(loop, came.append, number)
    assert not loop.calls
    mail.settled()
    assert len(loop.calls) == 1
    loop.run()
    assert came == list(range(100))
    mail.settled()
    assert not loop.calls  # nothing is new


def test_other_threads_wake_the_loop_at_once_and_once():
    mail, loop, came = Mail(), Loop(), []
    mail.settled()
    mail.put(loop, came.append, "engine")
    in_thread(lambda: [mail.put(loop, came.append, said) for said in ("a", "b")])
    assert len(loop.calls) == 1
    loop.run()
    assert came == ["engine", "a", "b"]


def test_what_is_said_while_the_loop_takes_is_taken_too():
    mail, loop, came = Mail(), Loop(), []

    def take(said):
        came.append(said)
        if said < 3:
            mail.put(loop, take, said + 1)

    mail.put(loop, take, 0)
    loop.run()
    loop.run()
    assert came == [0, 1, 2, 3]


def test_nothing_is_lost_between_many_threads_and_a_loop_that_runs():
    mail, came = Mail(), []

    async def receive():
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def take(said):
            came.append(said)
            if len(came) == 4000:
                done.set()

        def say(first):
            for number in range(first, first + 1000):
                mail.put(loop, take, number)
                if number % 7 == 0:
                    mail.settled()  # whoever said this last says when it has said everything
            mail.settled()

        threads = [threading.Thread(target=say, args=[1000 * i]) for i in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(done.wait(), 30)
        for thread in threads:
            thread.join()

    asyncio.run(receive())
    assert sorted(came) == list(range(4000))


def test_a_loop_that_has_ended_takes_nothing():
    mail, loop = Mail(), asyncio.new_event_loop()
    loop.close()
    mail.put(loop, print, "nobody hears this")
