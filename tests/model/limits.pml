/* The protocol of sql/functions/queue/limits.sql, as a model that Spin searches: no
 * reachable state has a message that waits for a slot that is free, and no consumer that
 * will look at it; and no slot has two holders.
 *
 * One limit with one slot, of one key, and two queues with a consumer each. The limit's
 * first queue is known to all; the first scan of the second one makes that known. One
 * transaction of each kind for each queue: an enqueue (T1) puts a message into the
 * queue's line, and a settlement (T2) frees the slot of a message. Each may be rolled
 * back; then the settlement is tried again.
 *
 * The bell is one step here, because bell.pml shows that it loses nothing: a commit
 * leaves its ring to each consumer that waits, or that has begun its last scan before.
 *
 * The model takes this from PostgreSQL: a statement sees what was committed before it
 * began; a commit makes rows visible, and releases row locks in a later step; a row that
 * a transaction shares is skipped by a scan that deletes.
 *
 * Each of these leaves out a part of the protocol, and a message is then stranded, or a
 * slot has two holders:
 *   -DNO_CHECK_OF_T1    an enqueue notes no check
 *   -DNO_CHECK_OF_T2    a settlement notes no check
 *   -DONE_QUEUE         a settlement notes a check only for its own queue
 *   -DNO_SHARE          an event relies on a row that is there without sharing its lock
 *   -DLOCKED_IGNORED    a scan does not look at the lines of locked rows
 *   -DLOOK_FIRST        a scan looks at the line before it deletes the rows
 *   -DNO_SINCE          a scan trusts that all transactions know its queue
 *   -DSAME_SCAN         the scan that makes the queue known notes `since`, too
 *   -DSINCE_LAST        it tests that after it has looked at the line
 *   -DNO_RING           an event does not ring
 */
#define QUEUES 2
#define ROLLBACKS 1

byte line[QUEUES];       /* committed messages in the line */
byte leased[QUEUES];     /* committed messages that hold the slot */
byte checks[QUEUES];     /* committed rows of limit_checks: 0 or 1 here, see note() */
byte shared[QUEUES];     /* open transactions that share the lock of that row */
bit known = false;       /* the second queue is in limit_queues, committed */
bit stamped = false;     /* `since` is there */
bit begun[QUEUES];        /* the settlement has a transaction id */
bit older[QUEUES];       /* and had it before the stamp */
bit rung[QUEUES];        /* a ring is on its way to the consumer of the queue */
bit asleep[QUEUES];
byte rollbacks;
bit granting;            /* the lock `grant` */

#define HELD (leased[0] + leased[1])

/* Note a check for queue q: rely on the row that is there, or insert one at the commit. */
inline note(q, relies, inserts) {
    atomic {
        if
        :: checks[q] > 0 ->
            relies = true;
#ifndef NO_SHARE
            shared[q]++
#endif
        :: else -> inserts = true
        fi
    }
}

/* The rows become visible, with the rings; the locks go later. */
inline reveal(q, relies, inserts) {
    checks[q] = (checks[q] > 0 || inserts);
#ifndef NO_RING
    rung[q] = true
#endif
}

inline unlock(q, relies) {
#ifndef NO_SHARE
    shared[q] = shared[q] - relies;
#endif
    relies = false
}

/* An enqueue into queue q. */
proctype Enqueue(byte q)
{
    bit relies, inserts;
#ifndef NO_CHECK_OF_T1
    note(q, relies, inserts);
#endif
    if
    :: true ->
        atomic {
            line[q]++;
            reveal(q, relies, inserts)
        }
    :: atomic { rollbacks < ROLLBACKS -> rollbacks++ }
    fi;
    unlock(q, relies)
}

/* A worker's settlement of a message of queue q that holds the slot. */
proctype Settle(byte q)
{
    bit relies[QUEUES], inserts[QUEUES], sees;
end:
    do
    :: atomic { leased[q] > 0 -> begun[q] = true };
        sees = known;
#ifdef ONE_QUEUE
        if
        :: q == 0 -> note(0, relies[0], inserts[0])
        :: else -> note(1, relies[1], inserts[1])
        fi;
#else
#ifndef NO_CHECK_OF_T2
        note(0, relies[0], inserts[0]);
        if
        :: sees -> note(1, relies[1], inserts[1])
        :: else
        fi;
#endif
#endif
        if
        :: atomic {
            leased[q]--;
            if
            :: relies[0] || inserts[0] -> reveal(0, relies[0], inserts[0])
            :: else
            fi;
            if
            :: relies[1] || inserts[1] -> reveal(1, relies[1], inserts[1])
            :: else
            fi;
            inserts[0] = false; inserts[1] = false; begun[q] = false; older[q] = false }
            unlock(0, relies[0]);
            unlock(1, relies[1])
        :: atomic {      /* rolled back; the lease is there, and it tries again */
            rollbacks < ROLLBACKS -> rollbacks++;
            inserts[0] = false; inserts[1] = false; begun[q] = false; older[q] = false }
            unlock(0, relies[0]);
            unlock(1, relies[1])
        fi
    od
}

/* Look at the line, and grant. */
inline look() {
    atomic {
        free = (HELD == 0);
        waits = line[me] > 0
    }
    atomic {
        if
        :: free && waits -> line[me]--; grants = true
        :: else
        fi
    }
}

inline test_since() {
    atomic {
        keeps = false;
        if
        :: names && me == 1 && line[1] > 0 ->
            if
#ifdef SAME_SCAN
            :: !stamped ->
#else
            :: !known -> adds = true; keeps = true
            :: known && !stamped ->
#endif
                stamped = true; keeps = true;
                older[0] = begun[0]; older[1] = begun[1]
#ifdef SAME_SCAN
                ; adds = true
#endif
            :: stamped && (older[0] || older[1]) -> keeps = true
            :: else
            fi
        :: else
        fi
    }
}

/* A full scan: what it has deleted and granted is visible at its commit. */
proctype Consumer(byte me)
{
    bit deletes, names, free, waits, grants, keeps, adds;
scan:
    atomic { !granting -> granting = true; rung[me] = false };   /* or it comes again soon */
#ifdef LOOK_FIRST
    if
    :: checks[me] > 0 -> look()
    :: else
    fi;
#endif
    atomic {
        names = checks[me] > 0;
        deletes = names && shared[me] == 0;
#ifdef LOCKED_IGNORED
        names = deletes;
#endif
        /* an event finds the row from here on, and does not get its lock */
        if
        :: deletes -> checks[me] = 0
        :: else
        fi
    }
#if !defined(NO_SINCE) && !defined(SINCE_LAST)
    test_since();
#endif
#ifndef LOOK_FIRST
    if
    :: names -> look()
    :: else
    fi;
#endif
#ifdef SINCE_LAST
    test_since();
#endif
    atomic {             /* commit */
        if
        :: keeps -> checks[me] = 1
        :: else
        fi;
        if
        :: adds -> known = true; adds = false
        :: else
        fi;
        if
        :: grants -> leased[me]++; grants = false
        :: else
        fi;
        granting = false;
        if
        :: keeps -> goto scan          /* it comes again soon */
        :: else -> asleep[me] = true
        fi
    }
end:
    atomic { rung[me] -> asleep[me] = false; goto scan }
}

#define STRANDED(q) (line[q] > 0 && HELD == 0 && asleep[q] && !rung[q])

/* Nothing else wakes a consumer. */
proctype Watch()
{
end:
    if
    :: atomic { HELD > 1 -> assert(false) }
    :: atomic { STRANDED(0) || STRANDED(1) -> assert(false) }
    fi
}

init {
    atomic {
        leased[0] = 1;
        run Enqueue(1); run Enqueue(1);
        run Settle(0); run Settle(1);
        run Consumer(0); run Consumer(1);
        run Watch()
    }
}
