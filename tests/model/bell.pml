/* The protocol of sql/functions/queue/ring.sql, as a model that Spin searches through: no reachable state has a consumer asleep beside a visible
 * message without a notification on its way to it.
 *
 * One queue, for each queue's locks are its own. Producers insert one message in each statement, which may be rolled back to a savepoint;
 * their transactions may be rolled back, by a crash or otherwise. Consumers may lose the connection that LISTENs, find out at any later
 * time, and connect again, or die.
 *
 * What is taken from PostgreSQL: one step of an advisory lock is atomic. A commit makes rows visible, and in a later step releases locks. A
 * notification goes to the sessions that LISTEN when the rows become visible, and arrives at any time after that. The locks and the
 * notifications of a session end with it. What is left out: a claim is one step, and a lease is for ever. What a claim that was cut short
 * and a lease that ended leave behind, the heartbeat finds; it rings for nobody.
 *
 * Each of these leaves something out, and then a wake-up is lost:
 *   -DNO_UNRUNG             the lock `unrung`
 *   -DNO_SECOND_LOOK        the producer's step 3
 *   -DNO_ASKING             the consumer's step 2
 *   -DNO_LAST_LOOK          the consumer's step 3
 *   -DLOOK_BEFORE_ASKING    the consumer's step 3 comes before its step 2
 *   -DLISTEN_LAST           a consumer that reconnects does all the steps, and then LISTENs
 *   -DLOCKS_BEFORE_ROWS     a commit that releases locks before its rows are visible
 *   -DFORGETFUL             a notification that came during the last look does not count
 */
#define PRODUCERS 2
#define TRANSACTIONS 1  /* of each producer */
#define STATEMENTS 2    /* of the first producer's transaction; the second's has one less */
#define CONSUMERS 2
#define LOSSES 1
#define NOBODY 255

byte visible;                    /* committed messages that nobody has claimed */
byte losses;

byte asleep_asked = NOBODY;      /* the producer that holds `waiting` exclusively, for the moment of asking */
bit asleep[CONSUMERS];           /* the consumers that hold it shared */
byte unrung_asked = NOBODY;      /* the consumer that holds `unrung` exclusively, for the moment of asking */
byte unrung[PRODUCERS];          /* how often each producer's transaction holds it shared */

bit listens[CONSUMERS];          /* the session is there, and its LISTEN was committed */
bit connected[CONSUMERS];        /* the session is there */
bit sent[CONSUMERS];             /* a notification is on its way to the session */
bit heard[CONSUMERS];            /* one has arrived since the consumer began to look */
bit sleeps[CONSUMERS];

#define SOMEBODY_SLEEPS (asleep[0] || asleep[1])
#define UNRUNG_IN_FLIGHT (unrung[0] + unrung[1] > 0)

/* tocsin._shared_elsewhere, with the answers it may give. While another asks, both: yes for no reason, too. */
inline ask_if_somebody_sleeps() {
    atomic {
        if
        :: SOMEBODY_SLEEPS -> ring = true
        :: !SOMEBODY_SLEEPS && asleep_asked != NOBODY -> ring = true
        :: !SOMEBODY_SLEEPS && asleep_asked != NOBODY -> ring = false
        :: !SOMEBODY_SLEEPS && asleep_asked == NOBODY -> asleep_asked = me
        fi
    }
    atomic {
        if
        :: asleep_asked == me -> asleep_asked = NOBODY
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
            ask_if_somebody_sleeps();
#ifndef NO_UNRUNG
            atomic {
                if
                :: ring
                :: !ring && unrung_asked == NOBODY -> unrung[me]++; took = true
                :: !ring && unrung_asked != NOBODY -> ring = true
                fi
            }
#endif
#ifndef NO_SECOND_LOOK
            if
            :: ring
            :: !ring -> ask_if_somebody_sleeps()
            fi;
#endif
            atomic {
                if
                :: rows++; rings = rings + ring
                :: unrung[me] = unrung[me] - took  /* rolled back to a savepoint before the statement */
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

/* Look for a message. Claims go through other connections than the one that LISTENs, so they succeed also when that one is lost. */
inline look(found) {
    if
    :: atomic { visible > 0 -> visible--; asleep[me] = false }; goto found
    :: visible == 0
    fi
}

inline listen() {
    if
    :: atomic { connected[me] -> listens[me] = true }
    :: !connected[me] -> goto connect
    fi
}

inline end_session(who) {
    d_step {
        connected[who] = false; listens[who] = false; asleep[who] = false; sent[who] = false; heard[who] = false;
        if
        :: unrung_asked == who -> unrung_asked = NOBODY
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
    heard[me] = false;
    do
    :: atomic { visible > 0 -> visible-- }
    :: break
    :: goto dead
    od;

    /* Step 1. */
    if
    :: atomic { connected[me] && asleep_asked == NOBODY -> asleep[me] = true }
    :: !connected[me] -> goto connect
    fi;

#ifdef LOOK_BEFORE_ASKING
    look(work);
#endif

ask:  /* step 2 */
#ifndef NO_ASKING
    if
    :: !connected[me] -> goto connect
    :: atomic {
        connected[me] ->
        if
        :: UNRUNG_IN_FLIGHT || unrung_asked != NOBODY -> goto ask_again
        :: !UNRUNG_IN_FLIGHT && unrung_asked != NOBODY
        :: !UNRUNG_IN_FLIGHT && unrung_asked == NOBODY -> unrung_asked = me
        fi }
    fi;
    if
    :: atomic { unrung_asked == me -> unrung_asked = NOBODY }
    :: unrung_asked != me
    fi;
#endif
    goto last_look;

ask_again:
    if
    :: atomic { visible > 0 -> visible--; asleep[me] = false }; goto work
    :: goto ask
    fi;

last_look:  /* step 3 */
#if !defined(NO_LAST_LOOK) && !defined(LOOK_BEFORE_ASKING)
    heard[me] = false;
    look(work);
#endif
#ifdef LISTEN_LAST
    listen();
#endif
#ifdef FORGETFUL
    heard[me] = false;
#endif

    sleeps[me] = true;
end:
    if
    :: atomic { heard[me] -> sleeps[me] = false }
    :: atomic { !connected[me] -> sleeps[me] = false; goto connect }
    :: atomic { losses < LOSSES -> losses++; sleeps[me] = false; goto dead }
    fi;
    if
    :: goto last_look  /* still holding `waiting` */
    :: asleep[me] = false; goto work
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
    :: atomic { sent[0] -> sent[0] = false; heard[0] = true }
    :: atomic { sent[1] -> sent[1] = false; heard[1] = true }
    od
}

/* Connections are lost; the process behind one finds out in its own time. */
proctype Misfortune()
{
end:
    do
    :: atomic { losses < LOSSES && connected[0] -> losses++; end_session(0) }
    :: atomic { losses < LOSSES && connected[1] -> losses++; end_session(1) }
    od
}

#define LOST(c) (visible > 0 && sleeps[c] && connected[c] && !heard[c] && !sent[c])

/* A wake-up that is lost is lost for good: nothing else would wake this consumer. */
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
        run Server(); run Misfortune(); run Watch()
    }
}
