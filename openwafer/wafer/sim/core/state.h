/* Memory of the simulator itself, queues, faults, waking: what every other part calls. */
#ifndef STATE_H
#define STATE_H

#include <stdlib.h>
#include "numerics.h"

/* ---- arena: freed as a whole ------------------------------------------------------------------------------------- */

typedef struct Chunk { struct Chunk *next; size_t used, size; } Chunk;

static void *take(Sim *sim, size_t size) {
  size = (size + 15) & ~(size_t)15;
  Chunk *chunk = sim->arena;
  if (!chunk || chunk->used + size > chunk->size) {
    size_t room = size > (1 << 20) - 64 ? size : (1 << 20) - 64;
    chunk = malloc(sizeof(Chunk) + 16 + room);
    if (!chunk) abort();
    chunk->next = sim->arena;
    chunk->used = 0;
    chunk->size = room;
    sim->arena = chunk;
  }
  char *start = (char *)(((uintptr_t)(chunk + 1) + 15) & ~(uintptr_t)15) + chunk->used;
  chunk->used += size;
  memset(start, 0, size);
  return start;
}

/* ---- queues ------------------------------------------------------------------------------------------------------ */

static inline Wavelet *head_of(const Queue *q) { return q->items + q->head; }

static inline void push(Sim *sim, Queue *q, Wavelet w) {
  if (q->len == q->capacity) {
    uint32_t capacity = q->capacity ? q->capacity * 2 : 4;
    Wavelet *items = take(sim, capacity * sizeof(Wavelet));
    for (uint32_t i = 0; i < q->len; i++) items[i] = q->items[(q->head + i) & (q->capacity - 1)];
    q->items = items;
    q->head = 0;
    q->capacity = capacity;
  }
  q->items[(q->head + q->len++) & (q->capacity - 1)] = w;
}

static inline Wavelet pop(Queue *q) {
  Wavelet w = q->items[q->head];
  q->head = (q->head + 1) & (q->capacity - 1);
  q->len--;
  return w;
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

/* The earliest fault counts: by cycle, phase and place, so that the order of PEs in a list does not. */
static void fault_at(Sim *sim, Pe *pe, uint64_t cycle, int kind, int64_t a, int64_t b, int64_t c, int pc) {
  uint64_t number = (uint64_t)(pe->number), order = (uint64_t)sim->phase << 40 | number;
  Fault *f = &sim->fault;
  if (f->kind && (f->cycle < cycle || (f->cycle == cycle && f->order <= order))) return;
  *f = (Fault){cycle, order, kind, (int32_t)number, pc, (int32_t)a, (int32_t)b, (int32_t)c};
}

static int fault(Sim *sim, Pe *pe, uint64_t now, int kind, int64_t a, int64_t b, int64_t c) {
  fault_at(sim, pe, now, kind, a, b, c, pe->acting >= 0 ? pe->acting : pe->pc);
  sim->core_next[pe->number] = NEVER;
  return 0;
}

static inline int faulted(const Sim *sim, const Pe *pe) {
  return sim->fault.kind && sim->pes + sim->fault.pe == pe;
}

/* ---- waking ------------------------------------------------------------------------------------------------------ */

static inline void wake_core(Sim *sim, Pe *pe, uint64_t cycle) {
  if (cycle < sim->core_next[pe->number]) sim->core_next[pe->number] = cycle;
  if (!pe->in_cores) {
    pe->in_cores = 1;
    sim->cores[sim->num_cores++] = (uint32_t)(pe->number);
  }
}

static inline void wake_router(Sim *sim, const Pe *pe, uint64_t cycle) {
  uint64_t *next = &sim->router_next[pe->number];
  if (*next == NEVER) sim->routers[sim->num_routers++] = (uint32_t)pe->number;
  if (cycle < *next) *next = cycle;
}

/* Something changed that a color may have waited for. */
static inline void news(Sim *sim, Pe *pe, int color, uint64_t cycle) {
  pe->alert |= (uint32_t)1 << color;
  wake_router(sim, pe, cycle);
}

static Color *color_of(Sim *sim, Pe *pe, int color) {
  Color *state = pe->colors[color];
  if (!state) {
    state = pe->colors[color] = take(sim, sizeof(Color));
    state->color = (uint8_t)color;
  }
  return state;
}

/* ---- memory of a PE ---------------------------------------------------------------------------------------------- */

static inline int bad_address(int64_t address, int size) {
  return address < 0 || address > MEMORY_BYTES - size || (size > 1 && (address & 1));
}

static inline uint64_t read_memory(Sim *sim, Pe *pe, uint64_t now, int64_t address, int size) {
  uint64_t value = 0;
  if (bad_address(address, size)) { fault(sim, pe, now, FAULT_BAD_ADDRESS, size, address, 0); return 0; }
  memcpy(&value, pe->memory + address, (size_t)size); /* little endian */
  return value;
}

static inline void write_memory(Sim *sim, Pe *pe, uint64_t now, int64_t address, int size, uint64_t value) {
  if (bad_address(address, size)) { fault(sim, pe, now, FAULT_BAD_ADDRESS, size, address, 0); return; }
  memcpy(pe->memory + address, &value, (size_t)size);
}

/* ---- task bits --------------------------------------------------------------------------------------------------- */

static void activate(Sim *sim, Pe *pe, uint64_t now, int64_t task) {
  if (task < 0 || task > 31) { fault(sim, pe, now, FAULT_TASK_ID, task, 0, 0); return; }
  if (!(pe->program->local_mask >> task & 1) && task != TEARDOWN_TASK) {
    fault(sim, pe, now, FAULT_UNBOUND_TASK, task, 0, 0);
    return;
  }
  pe->activated |= (uint32_t)1 << task;
}

static inline void complete(Sim *sim, Pe *pe, uint64_t now, const Completion *made) {
  if (made->activate >= 0) activate(sim, pe, now, made->activate);
  if (made->unblock_kind == BLOCK_TASK) pe->blocked &= ~((uint32_t)1 << made->unblock_id);
  else if (made->unblock_kind == BLOCK_MICROTHREAD) pe->blocked_threads &= (uint8_t)~(1u << made->unblock_id);
}

#endif
