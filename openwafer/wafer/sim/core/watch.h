/* What a watched PE does, as events: sim/watch.py in C. Its threads are compared before and after each step. */
#ifndef WATCH_H
#define WATCH_H

#include "vector.h"

enum { EVENT_TASK, EVENT_VECTOR, EVENT_STALL, NUM_EVENT_KINDS };
enum { STALL_BLOCKED = 5, STALL_OTHER = 6 }; /* beside WAIT_... */

typedef struct { uint64_t what, start; int64_t name; } Open; /* what 0: nothing */
typedef struct Watch { Open open[NUM_THREADS + 1][NUM_EVENT_KINDS]; int64_t left; } Watch;

static void note(Sim *sim, Pe *pe, int thread, int kind, uint64_t start, uint64_t end, int64_t name) {
  if (sim->num_events == sim->events_capacity) {
    sim->events_capacity = sim->events_capacity ? sim->events_capacity * 2 : 256;
    EventRow *events = realloc(sim->events, (size_t)sim->events_capacity * sizeof(EventRow));
    if (!events) abort();
    sim->events = events;
  }
  sim->events[sim->num_events++] = (EventRow){start, end, name, pe->number, thread, kind, 0};
}

static void set_event(Sim *sim, Pe *pe, int thread, int kind, uint64_t what, uint64_t now, int64_t name) {
  Open *open = &pe->watch->open[thread][kind];
  if (open->what == what) return;
  if (open->what && now > open->start && pe->watch->left > 0) {
    pe->watch->left--;
    note(sim, pe, thread, kind, open->start, now, open->name);
  }
  *open = (Open){what, now, name};
}

static int64_t reason(int kind, int a, int b) {
  return (int64_t)kind << 48 | ((int64_t)a & 0xFFFFFF) << 24 | ((int64_t)b & 0xFFFFFF);
}

/* Why a thread cannot issue now although it is its time; 0: it can, or it is not. */
static int64_t stall_of(Sim *sim, Pe *pe, uint64_t now, int thread, int main_can_issue) {
  Obstacle why = {0};
  if (thread < NUM_THREADS) {
    if (!(pe->threads_mask >> thread & 1) || pe->next_issue[thread] > now) return 0;
    if (pe->blocked_threads >> thread & 1) return reason(STALL_BLOCKED, 0, 0);
    return is_blocked(sim, pe, now, pe->threads[thread], &why) ? reason(why.kind, why.a, why.b) : 0;
  }
  if (pe->ready > now) return 0;
  if (pe->has_sync) return is_blocked(sim, pe, now, pe->sync, &why) ? reason(why.kind, why.a, why.b) : 0;
  return pe->running && !main_can_issue ? reason(STALL_OTHER, 0, 0) : 0;
}

static void watch_before(Sim *sim, Pe *pe, uint64_t now, int main_can_issue) {
  for (int thread = 0; thread <= NUM_THREADS; thread++) {
    int64_t why = stall_of(sim, pe, now, thread, main_can_issue);
    set_event(sim, pe, thread, EVENT_STALL, (uint64_t)why, now, why);
  }
}

static void watch_vector(Sim *sim, Pe *pe, uint64_t now, int thread, const Operation *o) {
  uint64_t what = o ? (uint64_t)o->serial + 1 : 0;
  set_event(sim, pe, thread, EVENT_VECTOR, what, o ? now : now + 1, o ? (int64_t)o->op << 32 | o->pc : 0);
}

static void watch_after(Sim *sim, Pe *pe, uint64_t now) {
  uint64_t task = pe->running;
  if ((pe->watch->open[MAIN][EVENT_TASK].what != 0) != (task != 0))
    set_event(sim, pe, MAIN, EVENT_TASK, task, task ? now : pe->ready, pe->pc);
  watch_vector(sim, pe, now, MAIN, pe->has_sync ? pe->sync : NULL);
  for (int n = 0; n < NUM_THREADS; n++)
    watch_vector(sim, pe, now, n, pe->threads_mask >> n & 1 ? pe->threads[n] : NULL);
}

#endif
