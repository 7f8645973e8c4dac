/* The protocol of sql/functions/jobs/outcomes.sql, as a model that Spin searches:
 * no reachable state has a process that waits for the outcome of a finished job
 * without a notification on its way to it.
 *
 * One queue with two jobs; each queue has its own locks. Each transaction finishes one
 * job or both, and may be rolled back; then another one finishes the job. Each process
 * waits for one job. A process may lose the connection that LISTENs, notice that later,
 * and begin again.
 *
 * The model takes this from PostgreSQL: one step of an advisory lock is atomic; a
 * commit makes rows visible, and releases locks in a later step; a notification goes to
 * the sessions that LISTEN when the rows become visible; the locks and notifications of
 * a session end with it.
 *
 * Each of these leaves out a part of the protocol, and an outcome is then missed:
 *   -DNO_UNANNOUNCED          the lock `unannounced`
 *   -DUNANNOUNCED_LAST        a transaction takes `unannounced` after its look into the table
 *   -DNO_TEST            the process's step 3
 *   -DTEST_FIRST         step 3 comes before step 1
 *   -DNO_LAST_LOOK       the process's step 4
 *   -DUNCOMMITTED_ROW    the row of step 1 becomes visible after step 3
 *   -DLOCKS_BEFORE_ROWS  a commit releases locks before its rows are visible
 */
#define JOBS 2
#define PROCESSES 2
#define TRANSACTIONS 3
#define ROLLBACKS 1
#define LOSSES 1

bit finished[JOBS];          /* the outcome is visible */
bit taken[JOBS];             /* an open transaction has locked the job's row */
byte rollbacks;
byte losses;

bit unannounced[TRANSACTIONS];    /* the transaction holds the lock */
bit awaited[PROCESSES];      /* the process's session holds the lock */
bit row[PROCESSES];          /* the process's row in the table is visible */
bit listens[PROCESSES];      /* the session is there */
bit sent[PROCESSES];         /* a notification is on its way to the session */
bit waits[PROCESSES];        /* the process waits for a notification */

#define JOB_OF(p) (p)        /* process p waits for job p */
#define AWAITED (awaited[0] || awaited[1])
#define UNANNOUNCED (unannounced[0] || unannounced[1] || unannounced[2])

#define FREE(job) (!taken[job] && !finished[job])

inline take(job) {
    taken[job] = true;
    mine[job] = true
}

proctype Transaction(byte me)
{
    bit mine[JOBS], tell[PROCESSES];
    byte j, p;

    /* Lock the rows of one job, or of both. */
    atomic {
        if
        :: FREE(0) -> take(0)
        :: FREE(1) -> take(1)
        :: FREE(0) && FREE(1) -> take(0); take(1)
        :: finished[0] && finished[1] -> goto end
        fi
    }
#ifndef NO_UNANNOUNCED
#ifndef UNANNOUNCED_LAST
    unannounced[me] = true;
#endif
#endif
    if
    :: AWAITED ->
        atomic {                 /* the look into the table, in one snapshot */
            p = 0;
            do
            :: p == PROCESSES -> break
            :: p < PROCESSES ->
                tell[p] = row[p] && mine[JOB_OF(p)];
                p++
            od
        }
    :: !AWAITED
    fi;
#ifndef NO_UNANNOUNCED
#ifdef UNANNOUNCED_LAST
    unannounced[me] = true;
#endif
#endif
    if
    :: true ->                   /* commit */
#ifdef LOCKS_BEFORE_ROWS
        unannounced[me] = false;
#endif
        atomic {
            j = 0;
            do
            :: j == JOBS -> break
            :: j < JOBS -> finished[j] = finished[j] || mine[j]; j++
            od;
            p = 0;
            do
            :: p == PROCESSES -> break
            :: p < PROCESSES -> sent[p] = sent[p] || (tell[p] && listens[p]); p++
            od
        }
    :: atomic { rollbacks < ROLLBACKS -> rollbacks++ }
    fi;
    atomic {
        unannounced[me] = false;
        j = 0;
        do
        :: j == JOBS -> break
        :: j < JOBS -> taken[j] = taken[j] && !mine[j]; j++
        od
    }
end:
    skip
}

proctype Process(byte me)
{
begin:
    atomic { listens[me] = true; sent[me] = false }
#ifdef TEST_FIRST
    !UNANNOUNCED;
#endif
#ifndef UNCOMMITTED_ROW
    row[me] = true;
#endif
    awaited[me] = true;
#ifndef NO_TEST
#ifndef TEST_FIRST
    !UNANNOUNCED;                     /* it asks until that is so */
#endif
#endif
#ifdef UNCOMMITTED_ROW
    row[me] = true;
#endif
    do
    ::
#ifndef NO_LAST_LOOK
        atomic {
            if
            :: finished[JOB_OF(me)] -> goto done
            :: !finished[JOB_OF(me)]
            fi
        }
#endif
        waits[me] = true;
        if
        :: atomic { sent[me] -> sent[me] = false; waits[me] = false };
            if
            :: finished[JOB_OF(me)] -> goto done
            :: else
            fi
        :: atomic { losses < LOSSES -> losses++; waits[me] = false; listens[me] = false;
                    awaited[me] = false; sent[me] = false }
            goto begin
        fi
    od;
done:
    atomic { waits[me] = false; awaited[me] = false; row[me] = false }
}

/* A process that waits without end is an invalid end state. */
init {
    atomic {
        run Process(0);
        run Process(1);
        run Transaction(0);
        run Transaction(1);
        run Transaction(2)
    }
}
