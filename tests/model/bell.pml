/* The protocol of sql/functions/queue/ring.sql, as a model that Spin searches exhaustively.
 * In no reachable state does a consumer wait, a message is visible, and no notification is
 * on its way to the consumer.
 *
 * The model has one queue, because each queue has its own locks. Producers insert one
 * message in each statement. A statement may be rolled back to a savepoint, and a
 * transaction may be rolled back, by a crash or otherwise. A consumer may lose the
 * connection that LISTENs, notice that at any later time, and connect again, or die.
 *
 * The model takes these facts from PostgreSQL. One step of an advisory lock is atomic. A
 * commit makes rows visible, and releases locks in a later step. A notification goes to
 * the sessions that LISTEN when the rows become visible, and arrives at any later time.
 * The locks and the notifications of a session end with the session.
 *
 * The model simplifies: a claim is one step, and a lease never expires. The heartbeat
 * finds the messages of a cancelled claim and of an expired lease, without a notification.
 *
 * Each of these options removes a part of the protocol, and then a wake-up is lost:
 *   -DNO_UNRUNG_LOCK             the lock `unrung`
 *   -DNO_SECOND_TEST             step 3 of the producer
 *   -DNO_UNRUNG_TEST             step 2 of the consumer
 *   -DNO_LAST_CLAIM              step 3 of the consumer
 *   -DLAST_CLAIM_BEFORE_TEST     step 3 of the consumer comes before step 2
 *   -DLISTEN_LAST                a consumer that reconnects does all steps and then LISTENs
 *   -DLOCKS_BEFORE_ROWS          a commit releases locks before its rows are visible
 *   -DRING_IN_LAST_CLAIM_IGNORED a notification that arrives during the last claim does
 *                                not count
 */
#define PRODUCERS 2
#define TRANSACTIONS 1  /* of each producer */
#define STATEMENTS 2    /* of the first producer's transaction; the second's has one less */
#define CONSUMERS 2
#define LOSSES 1
#define FREE 255

byte visible;                 /* committed messages without a lease */
byte losses;

byte waiting_tester = FREE;   /* the producer that holds `waiting` exclusively, for its test */
bit waiting[CONSUMERS];       /* the consumers that hold it shared */
byte unrung_tester = FREE;    /* the consumer that holds `unrung` exclusively, for its test */
byte unrung[PRODUCERS];       /* how often each producer's transaction holds it shared */

bit listens[CONSUMERS];       /* the session is there, and its LISTEN was committed */
bit connected[CONSUMERS];     /* the session is there */
bit sent[CONSUMERS];          /* a notification is on its way to the session */
bit arrived[CONSUMERS];       /* one has arrived since the consumer began its last claim */
bit idle[CONSUMERS];          /* the consumer waits for a notification */

#define CONSUMER_WAITS (waiting[0] || waiting[1])
#define UNRUNG_IN_FLIGHT (unrung[0] + unrung[1] > 0)

/* tocsin._shared_elsewhere, with the answers that it may give. While another session tests
 * the lock, both answers are possible. */
inline test_waiting() {
    atomic {
        if
        :: CONSUMER_WAITS -> ring = true
        :: !CONSUMER_WAITS && waiting_tester != FREE -> ring = true
        :: !CONSUMER_WAITS && waiting_tester != FREE -> ring = false
        :: !CONSUMER_WAITS && waiting_tester == FREE -> waiting_tester = me
        fi
    }
    atomic {
        if
        :: waiting_tester == me -> waiting_tester = FREE
        :: else
        fi
    }
}

proctype Producer(byte me)
{
    byte i, transactions, statements, rows, rings;
    bit ring, took;

    do
    :: transactions == TRANSACTIONS -> break
    :: transactions < TRANSACTIONS ->
        do
        :: statements > 0 -> break
        :: statements < STATEMENTS - me ->
            test_waiting();
#ifndef NO_UNRUNG_LOCK
            atomic {
                if
                :: ring
                :: !ring && unrung_tester == FREE -> unrung[me]++; took = true
                :: !ring && unrung_tester != FREE -> ring = true
                fi
            }
#endif
#ifndef NO_SECOND_TEST
            if
            :: ring
            :: !ring -> test_waiting()
            fi;
#endif
            atomic {
                if
                :: rows++; rings = rings + ring
                :: unrung[me] = unrung[me] - took  /* rolled back to a savepoint */
                fi;
                statements++; ring = false; took = false
            }
        od;
#ifdef LOCKS_BEFORE_ROWS
        unrung[me] = 0;
#endif
        atomic {
            if
            :: rows > 0 ->
                visible = visible + rows;
                for (i : 0 .. CONSUMERS - 1) {
                    sent[i] = sent[i] || (rings > 0 && listens[i])
                }
            :: skip  /* rolled back */
            fi;
            i = 0; rows = 0; rings = 0; statements = 0; transactions++
        }
        unrung[me] = 0
    od
}

/* Claim a message. Claims use other connections than the one that LISTENs, so a claim
 * succeeds also when that one is lost. */
inline claim(found) {
    if
    :: atomic { visible > 0 -> visible--; waiting[me] = false }; goto found
    :: visible == 0
    fi
}

inline listen() {
    if
    :: atomic { connected[me] -> listens[me] = true }
    :: !connected[me] -> goto connect
    fi
}

inline end_session(consumer) {
    d_step {
        connected[consumer] = false; listens[consumer] = false; waiting[consumer] = false;
        sent[consumer] = false; arrived[consumer] = false;
        if
        :: unrung_tester == consumer -> unrung_tester = FREE
        :: else
        fi
    }
}

proctype Consumer(byte me)
{
connect:
    if
    :: connected[me] = true
    :: goto dead
    fi;
#ifndef LISTEN_LAST
    listen();
#endif

work:
    arrived[me] = false;
    do
    :: atomic { visible > 0 -> visible-- }
    :: break
    :: goto dead
    od;

    /* Step 1. */
    if
    :: atomic { connected[me] && waiting_tester == FREE -> waiting[me] = true }
    :: !connected[me] -> goto connect
    fi;

#ifdef LAST_CLAIM_BEFORE_TEST
    claim(work);
#endif

test_unrung:  /* step 2 */
#ifndef NO_UNRUNG_TEST
    if
    :: !connected[me] -> goto connect
    :: atomic {
        connected[me] ->
        if
        :: UNRUNG_IN_FLIGHT || unrung_tester != FREE -> goto claim_and_test_again
        :: !UNRUNG_IN_FLIGHT && unrung_tester != FREE
        :: !UNRUNG_IN_FLIGHT && unrung_tester == FREE -> unrung_tester = me
        fi }
    fi;
    if
    :: atomic { unrung_tester == me -> unrung_tester = FREE }
    :: unrung_tester != me
    fi;
#endif
    goto last_claim;

claim_and_test_again:
    if
    :: atomic { visible > 0 -> visible--; waiting[me] = false }; goto work
    :: goto test_unrung
    fi;

last_claim:  /* step 3 */
#if !defined(NO_LAST_CLAIM) && !defined(LAST_CLAIM_BEFORE_TEST)
    arrived[me] = false;
    claim(work);
#endif
#ifdef LISTEN_LAST
    listen();
#endif
#ifdef RING_IN_LAST_CLAIM_IGNORED
    arrived[me] = false;
#endif

    idle[me] = true;
end:
    if
    :: atomic { arrived[me] -> idle[me] = false }
    :: atomic { !connected[me] -> idle[me] = false; goto connect }
    :: atomic { losses < LOSSES -> losses++; idle[me] = false; goto dead }
    fi;
    if
    :: goto last_claim  /* still holding `waiting` */
    :: waiting[me] = false; goto work
    fi;

dead:
    end_session(me)
}

/* Notifications arrive. */
proctype Server()
{
    byte i;
end:
    do
    :: atomic { sent[0] -> sent[0] = false; arrived[0] = true }
    :: atomic { sent[1] -> sent[1] = false; arrived[1] = true }
    od
}

/* Connections are lost. A process notices the loss at any later time. */
proctype Network()
{
end:
    do
    :: atomic { losses < LOSSES && connected[0] -> losses++; end_session(0) }
    :: atomic { losses < LOSSES && connected[1] -> losses++; end_session(1) }
    od
}

#define LOST(c) (visible > 0 && idle[c] && connected[c] && !arrived[c] && !sent[c])

/* A lost wake-up stays lost, because nothing else wakes this consumer. */
proctype Watch()
{
end:
    if
    :: LOST(0) || LOST(1) -> assert(false)
    fi
}

init {
    byte i;
    atomic {
        for (i : 0 .. PRODUCERS - 1) {
            run Producer(i)
        }
        for (i : 0 .. CONSUMERS - 1) {
            run Consumer(i)
        }
        run Server(); run Network(); run Watch()
    }
}
