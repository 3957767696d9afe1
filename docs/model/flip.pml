/*
 * The flip: how one interval changes its owner, with several proxies, a migrator that is replaced at any moment and may wake
 * again, leases that end, and clients that go past the proxies. README.md beside this file tells what is left out and why;
 * ../flip.md is the protocol in words. Each process and inline names the file and function that it stands for.
 *
 * There is no clock. Between two steps of a process any number of steps of the others may happen, which is what a stall, a slow
 * network, a catalog that is away and SIGSTOP are; a deadline may pass whenever it could. Of clocks only one thing is assumed: a
 * proxy's own count of its lease ends before the catalog's (see WITHOUT_EARLIER_END).
 *
 * A write adds one to a counter, a read answers the counter. Each WITHOUT_… leaves one precaution out; spin must then find a violation.
 */

#ifndef PROXIES
#define PROXIES 2
#endif
#ifndef OPERATIONS
#define OPERATIONS 1                /* of each proxy's client */
#endif
#ifndef CLIENTS
#define CLIENTS PROXIES             /* proxies that have one */
#endif
#ifndef LAPSES
#define LAPSES 1                    /* leases that end, of all proxies together */
#endif
#ifndef TRIES
#define TRIES 0                     /* fences that may be missed before the migration is undone */
#endif
#ifndef MIGRATORS
#define MIGRATORS 2
#endif
#ifndef AWAKENINGS
#define AWAKENINGS 0                /* times that a migrator connects anew, be its lease lost or not */
#endif
#ifndef PAST
#define PAST 1                      /* sessions that write to the old owner without a proxy */
#endif

#define SOURCE 0
#define DESTINATION 1

/* Of the migration; a missed fence leads from FENCING back to READY, which stands for all that is before the fence. */
mtype:state = { READY, FENCING, FLIPPED, CLEANING, DONE, ABORTED };
/* Of the hold's row. EXPIRED: past its deadline. */
mtype:row = { NO_HOLD, HOLDS, EXPIRED };
/* What a proxy knows of a hold. OLD_HOLD: one whose row is gone. */
#define NO_KNOWN 0
#define THIS_HOLD 1
#define OLD_HOLD 2

/* ---- The catalog ---- */
bit epoch;                          /* 1: the destination is the owner */
mtype:state state = READY;
byte owner = 255;                   /* the migrator that has the lease */
bit fresh[2];                       /* the row is as this migrator has read it: state and generation */
bit locked;                         /* the migration's row, by a flip that is under way */
mtype:row hold = NO_HOLD;
bit ack[PROXIES];                   /* of this hold */
bit lease[PROXIES];                 /* by the catalog's clock */
bit epochAcked[PROXIES];
byte tries;

/* ---- The proxies ---- */
bit map[PROXIES];                   /* the epoch that they serve */
byte held[PROXIES];
bit serves[PROXIES];                /* the lease, by their own clock */
bit open[PROXIES];                  /* a statement or transaction is open on the interval … */
bit placed[PROXIES];                /* … placed by this epoch */
bit working[PROXIES];               /* a statement has not been answered yet */
bit cut[PROXIES];                   /* its session was closed */
bit loading[PROXIES];               /* the topology is on its way: */
bit loadedMap[PROXIES];
byte loadedHold[PROXIES];
bit asking[PROXIES];                /* an acknowledgement is on its way */
#ifdef WITHOUT_LOADS_IN_ORDER
bit loading2[PROXIES];
bit loadedMap2[PROXIES];
byte loadedHold2[PROXIES];
#endif
byte lapses;
byte ends;

/* ---- The shards ---- */
bit guarded = 1;
bit closed[2];                      /* the gates */
byte writers[2];                    /* transactions that hold the guard's lock, shared */
byte fencer = 255;                  /* the migrator that holds it at the source, exclusively */
byte count[2];                      /* the rows */
byte replicated;                    /* writes of the source that the destination has */
bit subscribed = 1;
bit removed;                        /* the source's rows */
byte waited = 255;                  /* the migrator whose session has writes wait at the destination's gate, with the guard's lock */
bit connected[4];                   /* a migrator's session at a shard: [shard * 2 + migrator] */
byte awakenings;

/* ---- The clients ---- */
byte seen;                          /* the newest state that anybody was told of */

#define OVER (state == DONE || state == ABORTED)
#define NEWS(i) (map[i] != epoch || (hold == HOLDS && held[i] != THIS_HOLD) || (hold != HOLDS && held[i] != NO_KNOWN))
#define QUIET1(k) (!lease[k] || ack[k])
#define CURRENT1(k) (!lease[k] || epochAcked[k])
#if PROXIES == 1
#define QUIET QUIET1(0)
#define CURRENT CURRENT1(0)
#elif PROXIES == 2
#define QUIET (QUIET1(0) && QUIET1(1))
#define CURRENT (CURRENT1(0) && CURRENT1(1))
#else
#define QUIET (QUIET1(0) && QUIET1(1) && QUIET1(2))
#define CURRENT (CURRENT1(0) && CURRENT1(1) && CURRENT1(2))
#endif

/* topology/catalog/leases.ts, dropHold: the row goes, and with it what acknowledgements of it are on their way. */
inline dropHold() {
  hold = NO_HOLD;
  for (x : 0 .. PROXIES - 1) {
    asking[x] = 0; ack[x] = 0;
    if :: held[x] == THIS_HOLD -> held[x] = OLD_HOLD :: else fi;
    if :: loadedHold[x] == THIS_HOLD -> loadedHold[x] = OLD_HOLD :: else fi;
#ifdef WITHOUT_LOADS_IN_ORDER
    if :: loadedHold2[x] == THIS_HOLD -> loadedHold2[x] = OLD_HOLD :: else fi;
#endif
  };
  x = 0
}

/* topology/catalog/topology-reader.ts: one statement, so one moment; a hold past its deadline is not in it. */
inline load(mapTo, holdTo) {
  mapTo = epoch;
  if :: hold == HOLDS -> holdTo = THIS_HOLD :: else -> holdTo = NO_KNOWN fi
}

/* proxy/live-topology.ts, #apply; proxy/proxy-server.ts, onNewEpoch: sessions with an owner that changed are closed without the lease. */
inline apply(i, newMap, newHold) {
  if
  :: newMap < map[i]
  :: else ->
#ifndef WITHOUT_CLOSING_SESSIONS
     if :: newMap != map[i] && !serves[i] && working[i] && placed[i] != newMap -> cut[i] = 1 :: else fi;
#endif
     map[i] = newMap;
     held[i] = newHold
  fi;
  newMap = 0; newHold = NO_KNOWN
}

/*
 * proxy/live-topology.ts, #renew. 0: none is under way. 1: it has been sent. 2: the lease lasts, the answer is on its way; 3: the same,
 * but it ended since. 4: it had ended. 5: registered, 6: and the topology is being loaded.
 */
inline renewal(i, stage, tells, going, toMap, toHold) {
  if
  :: d_step { stage == 0 && (!serves[i] || (map[i] == 1 && !epochAcked[i] && !(open[i] && placed[i] == 0))) ->
       stage = 1; tells = (map[i] == 1 && !(open[i] && placed[i] == 0)) }
  :: d_step { stage == 1 ->
       if :: lease[i] -> stage = 2; epochAcked[i] = (epochAcked[i] || tells) :: else -> stage = 4 fi }
  /* The answer: it may have come too late to be worth anything. */
  :: d_step { stage == 2 -> stage = 0; tells = 0; serves[i] = 1 }
  :: d_step { stage == 3 -> stage = 0; tells = 0 }
  /* ProxyLeases.register: what was acknowledged under the last lease is void. */
  :: d_step { stage == 4 -> lease[i] = 1; ack[i] = 0; epochAcked[i] = tells; stage = 5
#ifdef WITHOUT_REGISTER_FIRST
       ; tells = 0; stage = 0; serves[i] = 1
#endif
     }
  :: d_step { stage == 5 && !going -> going = 1; load(toMap, toHold); stage = 6 }
  :: d_step { stage == 6 || stage == 7 -> going = 0; apply(i, toMap, toHold);
       if :: stage == 6 -> serves[i] = 1 :: else fi; stage = 0; tells = 0 }
  fi
}

#ifdef WITHOUT_LOADS_IN_ORDER
#define RENEWAL_LOADS loading2[i], loadedMap2[i], loadedHold2[i]
#else
#define RENEWAL_LOADS loading[i], loadedMap[i], loadedHold[i]
#endif

/* proxy/live-topology.ts: one proxy, everything but its clients. */
proctype Proxy(byte i) {
  byte stage;                       /* of the renewal */
  bit tells;                        /* the epoch that it acknowledges */
#ifdef WITHOUT_ONE_RENEWAL
  byte stage2;
  bit tells2;
#endif

end:
  do
  /* topology/catalog/watch.ts has news: reload(). One load at a time; a renewal's own waits for it, and it for that. */
  :: d_step { !loading[i] && NEWS(i) -> loading[i] = 1; load(loadedMap[i], loadedHold[i]) }
#ifdef WITHOUT_LOADS_IN_ORDER
  :: d_step { loading[i] -> loading[i] = 0; apply(i, loadedMap[i], loadedHold[i]) }
#elif defined(WITHOUT_ONE_RENEWAL)
  :: d_step { loading[i] && stage < 6 && stage2 < 6 -> loading[i] = 0; apply(i, loadedMap[i], loadedHold[i]) }
#else
  :: d_step { loading[i] && stage < 6 -> loading[i] = 0; apply(i, loadedMap[i], loadedHold[i]) }
#endif

  /* #acknowledge, ProxyLeases.ackHold: when nothing is open on the interval; the message may take its time. */
#ifdef WITHOUT_WAITING_FOR_TRANSACTIONS
  :: d_step { held[i] == THIS_HOLD && hold != NO_HOLD && !asking[i] && !ack[i] && lease[i] -> asking[i] = 1 }
#else
  :: d_step { held[i] == THIS_HOLD && hold != NO_HOLD && !asking[i] && !ack[i] && lease[i] && !open[i] -> asking[i] = 1 }
#endif
  :: d_step { asking[i] -> asking[i] = 0; ack[i] = (hold != NO_HOLD && lease[i]) }

  /* The lease ends, by the proxy's clock, … */
  :: d_step { serves[i] && lapses < LAPSES -> serves[i] = 0; lapses++ }
  /* … and later by the catalog's: what was granted before is worth nothing any more. */
#ifdef WITHOUT_EARLIER_END
  :: d_step { lease[i] && ends < LAPSES ->
#else
  :: d_step { lease[i] && !serves[i] && ends < LAPSES ->
#endif
       lease[i] = 0; ends++;
       if :: stage == 2 -> stage = 3 :: stage == 6 -> stage = 7 :: stage == 5 -> stage = 0; tells = 0 :: else fi
#ifdef WITHOUT_ONE_RENEWAL
       ; if :: stage2 == 2 -> stage2 = 3 :: stage2 == 6 -> stage2 = 7 :: stage2 == 5 -> stage2 = 0; tells2 = 0 :: else fi
#endif
     }
  :: renewal(i, stage, tells, RENEWAL_LOADS)
#ifdef WITHOUT_ONE_RENEWAL
  /* With news for the catalog (tellHeard, #apply), while that of the timer is under way. */
  :: renewal(i, stage2, tells2, loading[i], loadedMap[i], loadedHold[i])
#endif
  od
}

/* Somebody is told of a state. */
inline learn(what) {
  if :: what > seen -> seen = what :: else fi
}

/* The guard's lock is to be had, shared. */
#define FREE(shard) (!guarded || (shard == SOURCE && fencer == 255) || (shard == DESTINATION && waited == 255))

/* sql/shard/guard.sql, for one write of one session; `committed` says what became of it, `orphan` that nobody will find it. */
inline write(shard, committed, orphan, version) {
#ifdef WITHOUT_LOCK_BEFORE_GATE
  atomic {
    if
    :: guarded && closed[shard] -> committed = 0; goto refused
    :: else
    fi
  };
  atomic { FREE(shard) -> writers[shard]++ };
#else
  atomic { FREE(shard) -> writers[shard]++ };
  atomic {
    if
    :: guarded && closed[shard] -> writers[shard]--; committed = 0; goto refused
    :: else
    fi
  };
#endif
  /* Its transaction goes on for a while, with the lock. */
  d_step {
    orphan = (shard != epoch);
    assert(!orphan || !guarded);    /* never two owners: what commits, commits at the owner, for as long as there are guards */
    writers[shard]--; committed = 1;
    if :: orphan -> version = 0 :: else -> count[shard]++; version = count[shard] fi
  };
refused:
  skip
}

/* proxy/session/lease.ts, #getReady; live-topology.ts, admits: looked at and registered in one turn. */
#ifdef WITHOUT_HOLDING
#define ADMITS serves[i] && !open[i]
#else
#define ADMITS serves[i] && held[i] == NO_KNOWN && !open[i]
#endif
/* proxy/backend/server-connection.ts, mayRead: an answer waits for the lease. */
#ifdef WITHOUT_LEASE_AT_ANSWER
#define ANSWERED !cut[i]
#else
#define ANSWERED serves[i] && !cut[i]
#endif

/* A read that has been sent: it may reach the shard late, when the lease under which it was placed is long over. */
inline read() {
  d_step { value = count[shard]; wrong = (shard == SOURCE && removed) };
  if
  :: d_step { ANSWERED ->
       assert(!wrong);              /* no read of rows that were removed */
       assert(value >= before);     /* no stale read */
       learn(value); working[i] = 0 }
  :: d_step { cut[i] || !serves[i] -> working[i] = 0; cut[i] = 1 } /* 40001 or 57P03 in its place */
  fi
}

/* proxy/session/: a client of proxy i, with writes, and transactions of two reads. */
proctype Client(byte i) {
  byte n;
  byte before;
  byte value;
  bit wrong;
  bit shard;
  bit committed;
  bit orphan;

  do
  :: n < OPERATIONS ->
     n++;
     if
     :: true -> /* a write */
again:
        atomic { ADMITS -> open[i] = 1; placed[i] = map[i]; shard = map[i]; working[i] = 1 };
        write(shard, committed, orphan, value);
        if
        /* SH001: unseen by the client, once more where the map says by then (server-replies.ts, #retry). */
        :: d_step { !committed -> open[i] = 0; working[i] = 0; cut[i] = 0 }; goto again
        :: d_step { committed && ANSWERED ->
             assert(!orphan);       /* no lost write: what was acknowledged is with the owner */
             learn(value); open[i] = 0; working[i] = 0 }
        :: d_step { committed && (cut[i] || !serves[i]) -> open[i] = 0; working[i] = 0; cut[i] = 0 } /* not acknowledged */
        fi
     :: true -> /* two reads in a transaction */
        d_step { ADMITS -> open[i] = 1; placed[i] = map[i]; shard = map[i]; working[i] = 1; before = seen };
        read();
        /* The second one: no hold stops it, which waits for the transaction; the lease does, and another owner (#checkStale). */
        if
        :: d_step { !cut[i] && serves[i] && map[i] == shard -> working[i] = 1; before = seen };
           read()
        :: cut[i] || map[i] != shard
        fi;
        d_step { open[i] = 0; working[i] = 0; cut[i] = 0; value = 0; wrong = 0; before = 0; shard = 0 }
     fi;
     d_step { value = 0; shard = 0; committed = 0; orphan = 0 }
  :: else -> break
  od
}

/* A session that goes past the proxies to one of the shards, while the migration lasts (../flip.md, "What it does not protect from"). */
proctype PastTheProxies() {
  bit shard;
  bit committed;
  bit orphan;
  byte value;

  if
  :: atomic { guarded -> if :: shard = SOURCE :: shard = DESTINATION fi };
     write(shard, committed, orphan, value);
     d_step { if :: committed && !orphan -> learn(value) :: else fi }
  :: atomic { !guarded -> skip }
  fi
}

/* What happens by itself. */
proctype World() {
end:
  do
  /* Logical replication: one ordered stream. */
  :: d_step { subscribed && replicated < count[SOURCE] && !epoch -> replicated++; count[DESTINATION]++ }
  /* A hold's deadline. */
  :: d_step { hold == HOLDS -> hold = EXPIRED }
  /* guards.ts, waitAtGateSql: the server ends a session that says nothing for too long. */
  :: d_step { waited != 255 -> connected[DESTINATION * 2 + waited] = 0; waited = 255 }
  od
}

/* What a migrator does at a shard fails when another has ended its session; in the catalog, when it has lost its lease. */
#define AT(shard) connected[(shard) * 2 + m]
#define MINE (owner == m && fresh[m])
/* The process dies. Its successor comes as soon as its lease is over; see Migrator. */
#define DIES MIGRATORS > 1 && m == 0

inline moved(to) {
  state = to;
  fresh[0] = (m == 0); fresh[1] = (m == 1)
}

/* migrator/shard-session.ts, #lock: the predecessor's session is ended, and its locks go with it. */
inline openSession(shard) {
#ifndef WITHOUT_ENDING_CONNECTIONS
  connected[(shard) * 2 + 1 - m] = 0;
  if :: (shard) == SOURCE && fencer == 1 - m -> fencer = 255 :: else fi;
  if :: (shard) == DESTINATION && waited == 1 - m -> waited = 255 :: else fi;
#endif
  if :: (shard) == DESTINATION && waited == m -> waited = 255 :: else fi;
  AT(shard) = 1
}

/* migrator/driver.ts and steps/. A successor may come at any time: its predecessor has died, or sleeps and knows nothing of it. */
proctype Migrator(byte m) {
  byte x;

  /* lease.ts, take: the row is waited for when a flip has it locked. */
  atomic { (m == 0 || owner == 0) && !locked -> owner = m; fresh[m] = 0; fresh[1 - m] = 0 };

attempt: /* driver.ts, attempt */
  atomic { openSession(SOURCE) };
  atomic { openSession(DESTINATION) };
#ifndef WITHOUT_LEASE_AFTER_CONNECTING
  /* Once more the lease, by the catalog: also a flip of our own may still be under way there. */
  if
  :: atomic { owner == m && !locked -> skip }
  :: atomic { owner != m -> goto gone }
  fi;
#endif
  fresh[m] = (owner == m);
  if
  :: atomic { state == FENCING -> goto retreat }
  :: atomic { state == FLIPPED -> goto opened }
  :: atomic { state == CLEANING -> goto clean }
  :: atomic { OVER -> goto gone }
  :: state == READY
  fi;

ready: /* steps/ready.ts */
  if
  :: atomic { MINE && state == READY -> moved(FENCING) }
  :: atomic { !(MINE && state == READY) -> goto lost }
  fi;

  /* steps/fence.ts, hold; migration-store.ts, inLease */
  if
#ifdef WITHOUT_LEASE_AT_HOLD
  :: atomic { hold == NO_HOLD -> hold = HOLDS }
  :: atomic { hold != NO_HOLD && !MINE -> goto lost }
#else
  :: atomic { MINE -> assert(hold == NO_HOLD); hold = HOLDS }
  :: atomic { !MINE -> goto lost }
#endif
  :: atomic { DIES -> goto gone }
  fi;
#ifndef WITHOUT_WAITING_FOR_PROXIES
  if
  :: atomic { hold == HOLDS && QUIET -> skip }
  :: atomic { hold != HOLDS -> goto retreat }
  :: atomic { hold == HOLDS && !QUIET -> goto retreat } /* ackMs */
  fi;
#endif

  /* waitAtGate: who writes at the destination now waits for its gate; not if somebody does already */
  if
  :: atomic { AT(DESTINATION) && writers[DESTINATION] == 0 -> waited = m }
  :: atomic { AT(DESTINATION) && writers[DESTINATION] > 0 -> skip }
  :: atomic { !AT(DESTINATION) -> goto disconnected }
  fi;

  /* closeGate: one transaction at the source */
#ifndef WITHOUT_FENCE
#ifndef WITHOUT_WAITING_FOR_WRITERS
  if
  :: atomic { AT(SOURCE) && writers[SOURCE] == 0 && fencer == 255 -> fencer = m }
  :: atomic { !AT(SOURCE) -> goto disconnected }
  :: atomic { AT(SOURCE) && writers[SOURCE] > 0 -> goto retreat } /* fenceMs */
  fi;
#endif
  if
  :: d_step { AT(SOURCE) -> closed[SOURCE] = 1; if :: fencer == m -> fencer = 255 :: else fi }
  :: atomic { !AT(SOURCE) -> goto disconnected }
  :: atomic { DIES -> if :: fencer == m -> fencer = 255 :: else fi; goto gone }
  fi;
#endif

  /* drain: the marker has arrived, and everything before it */
#ifndef WITHOUT_DRAIN
  if
  :: atomic { AT(DESTINATION) && replicated == count[SOURCE] -> skip }
  :: atomic { !AT(DESTINATION) -> goto disconnected }
  :: atomic { AT(DESTINATION) && replicated < count[SOURCE] -> goto retreat } /* drainMs */
  fi;
#endif
#ifndef WITHOUT_FENCE
  /* assertGateClosed */
  if
  :: atomic { AT(SOURCE) && closed[SOURCE] -> skip }
  :: atomic { AT(SOURCE) && !closed[SOURCE] -> goto retreat }
  :: atomic { !AT(SOURCE) -> goto disconnected }
  fi;
#endif
#ifdef WITHOUT_FLIP_BEFORE_OPEN
  closed[DESTINATION] = 0;
#endif
#ifdef WITHOUT_RELEASE_AFTER_COMMIT
  atomic { dropHold() };
#endif

  /*
   * executor.ts, flip: one message, which the catalog takes its time over. The change of state comes before the last look; it locks the row, for
   * whoever wants the lease.
   */
  if
  :: atomic { MINE && state == FENCING && !locked -> locked = 1 }
  :: atomic { !(MINE && state == FENCING) -> goto retreat }
  fi;
#ifdef WITHOUT_CHECK_AT_COMMIT
  /* The hold is looked at by a message of its own: its deadline may pass before the commit. */
  if
  :: atomic { QUIET && hold == HOLDS -> skip }
  :: atomic { !(QUIET && hold == HOLDS) -> locked = 0; goto retreat }
  fi;
#endif
  if
  :: atomic { locked -> /* nothing comes between the last look and the commit */
       if
#if !defined(WITHOUT_CHECK_AT_COMMIT) && !defined(WITHOUT_HOLD_AT_FLIP) && !defined(WITHOUT_RELEASE_AFTER_COMMIT)
       :: hold != HOLDS -> locked = 0; goto retreat
#endif
#if !defined(WITHOUT_CHECK_AT_COMMIT) && !defined(WITHOUT_ACKS_AT_FLIP) && !defined(WITHOUT_RELEASE_AFTER_COMMIT)
       :: !QUIET -> locked = 0; goto retreat
#endif
       :: else ->
          assert(replicated == count[SOURCE]); /* no lost write: the new owner has everything */
          epoch = 1; moved(FLIPPED); dropHold(); locked = 0
       fi }
  :: atomic { locked && awakenings < AWAKENINGS -> awakenings++; goto commits } /* the answer is lost */
#ifndef WITHOUT_TIMEOUT_IN_FLIP
  :: atomic { DIES -> locked = 0; goto gone } /* dead, or silent for longer than the catalog allows: it rolls back */
#else
  :: atomic { DIES -> goto gone } /* it sleeps, and its transaction lasts */
#endif
  fi;

opened: /* steps/open.ts */
  if
  :: d_step { AT(DESTINATION) -> closed[DESTINATION] = 0; if :: waited == m -> waited = 255 :: else fi }
  :: atomic { !AT(DESTINATION) -> goto disconnected }
  :: atomic { DIES -> goto gone }
  fi;
  if
  :: d_step { AT(SOURCE) -> closed[SOURCE] = 1 }
  :: atomic { !AT(SOURCE) -> goto disconnected }
  fi;
  if
  :: d_step { AT(DESTINATION) -> subscribed = 0 }
  :: atomic { !AT(DESTINATION) -> goto disconnected }
  fi;
  if
  :: atomic { MINE && state == FLIPPED -> moved(CLEANING) }
  :: atomic { !(MINE && state == FLIPPED) -> goto lost }
  fi;

clean: /* steps/clean.ts */
#ifndef WITHOUT_EPOCH_ACKNOWLEDGED
  atomic { CURRENT -> skip };
#endif
  if
  :: d_step { AT(SOURCE) -> removed = 1 }
  :: atomic { !AT(SOURCE) -> goto disconnected }
  :: atomic { DIES -> goto gone }
  fi;
  /* The guards go: their tables are locked for that, so no writer is in flight. */
  if
  :: d_step { AT(SOURCE) && writers[SOURCE] == 0 && writers[DESTINATION] == 0 -> guarded = 0 }
  :: atomic { !AT(SOURCE) -> goto disconnected }
  fi;
  if
  :: atomic { MINE && state == CLEANING -> moved(DONE) }
  :: atomic { !(MINE && state == CLEANING) -> goto lost }
  fi;
  goto gone;

retreat: /* steps/fence.ts, retreat; when too many fences were missed, steps/abort.ts */
  if
  :: d_step { AT(SOURCE) -> closed[SOURCE] = 0; if :: waited == m -> waited = 255 :: else fi }
  :: atomic { !AT(SOURCE) -> goto disconnected }
  fi;
  if
  :: atomic { owner == m && !locked && state == FENCING -> fresh[m] = 1; dropHold() }
  :: atomic { !(owner == m && state == FENCING) -> goto lost }
  :: atomic { DIES -> goto gone }
  fi;
  if
  :: atomic { MINE && state == FENCING && tries < TRIES -> tries++; moved(READY); goto ready }
  :: atomic { MINE && state == FENCING && tries == TRIES -> moved(ABORTED) }
  :: atomic { !(MINE && state == FENCING) -> goto lost }
  fi;
  d_step { subscribed = 0; guarded = 0 };
  goto gone;

disconnected: /* driver.ts, drive: it connects anew; it may have slept, and not know yet that its lease is lost */
  if
  :: atomic { owner != m && awakenings < AWAKENINGS -> awakenings++; goto attempt }
  :: atomic { owner != m -> goto gone }
  :: atomic { owner == m -> goto attempt }
  fi;

lost: /* a compare-and-set has failed: begins anew, if the lease is its own */
  if
  :: atomic { owner == m -> goto attempt }
  :: atomic { owner != m -> goto gone }
  fi;

commits: /* The flip's last message is at the catalog, and its sender does not know: it goes on while that is carried out. */
  run Commit(m);
  goto attempt;

gone: /* its sessions end with it; a successor ends those of one that sleeps */
  atomic { if :: waited == m -> waited = 255 :: else fi }
}

/* The catalog carries out a flip whose sender has lost the connection. */
proctype Commit(byte m) {
  byte x;
  atomic {
    if
    :: hold != HOLDS || !QUIET -> locked = 0
    :: else ->
       assert(replicated == count[SOURCE]);
       epoch = 1; moved(FLIPPED); dropHold(); locked = 0
    fi
  }
}

/* When nothing can happen any more. */
proctype End() {
  timeout ->
  assert(OVER);
  assert(hold == NO_HOLD);          /* no hold is left */
  assert(count[epoch] >= seen);     /* no lost write */
  assert(state == DONE || (!epoch && !closed[SOURCE]));
  assert(state == ABORTED || (epoch && !closed[DESTINATION] && (closed[SOURCE] || !guarded)))
}

init {
  byte x;
  atomic {
    closed[DESTINATION] = 1;
    for (x : 0 .. PROXIES - 1) {
      lease[x] = 1; serves[x] = 1;
      run Proxy(x);
      if :: x < CLIENTS -> run Client(x) :: else fi
    };
    x = 0;
#if PAST
    run PastTheProxies();
#endif
    run World();
#ifndef LIVENESS
    run End();
#endif
    run Migrator(0)
#if MIGRATORS > 1
    ; run Migrator(1)
#endif
  }
}

ltl ends { <> OVER }
