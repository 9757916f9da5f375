/* Memory of the simulator itself, queues, faults, waking: what every other part calls. */
#ifndef STATE_H
#define STATE_H

#include <stdlib.h>
#include "numerics.h"

/* ---- arena: freed as a whole ------------------------------------------------------------------------------------- */

typedef struct Chunk { struct Chunk *next; size_t used, size; } Chunk;

enum { CACHE_LINE = 64 };

/* Zeroed memory; what is as large as a cache line begins with one. */
static void *take(Sim *sim, size_t size) {
  size_t grain = size < CACHE_LINE ? 16 : CACHE_LINE;
  Chunk *chunk = sim->arena;
  size = (size + grain - 1) & ~(grain - 1);
  if (!chunk || ((chunk->used + grain - 1) & ~(grain - 1)) + size > chunk->size) {
    size_t room = size > (1 << 20) - 128 ? size : (1 << 20) - 128;
    chunk = malloc(sizeof(Chunk) + CACHE_LINE + room);
    if (!chunk) abort();
    chunk->next = sim->arena;
    chunk->used = 0;
    chunk->size = room;
    sim->arena = chunk;
  }
  chunk->used = (chunk->used + grain - 1) & ~(grain - 1);
  char *start = (char *)(((uintptr_t)(chunk + 1) + CACHE_LINE - 1) & ~(uintptr_t)(CACHE_LINE - 1)) + chunk->used;
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

/* Bounded queues: rings that are never asked to hold more than they can. */

static inline Wavelet *port_head(const Color *color, int port) {
  if (port == HOST) return head_of(&color->host_in);
  return color->ports + color->first[port] + color->head[port];
}

static void open_port(Sim *sim, Color *color, int port) {
  size_t used = (size_t)color->num_rings++ * ROUTER_RING;
  Wavelet *made = take(sim, (used + ROUTER_RING) * sizeof(Wavelet));
  if (used) memcpy(made, color->ports, used * sizeof(Wavelet));
  color->ports = made;
  color->first[port] = (uint8_t)used;
}

static inline void port_push(Sim *sim, Color *color, int port, Wavelet w) {
  if (color->first[port] == NO_RING) open_port(sim, color, port);
  color->ports[color->first[port] + ((color->head[port] + color->len[port]++) & (ROUTER_RING - 1))] = w;
}

/* The head's place stays readable until the next push. */
static inline void port_drop(Color *color, int port) {
  if (port == HOST) {
    pop(&color->host_in);
    if (color->host_in.len) return;
  } else {
    color->head[port] = (color->head[port] + 1) & (ROUTER_RING - 1);
    if (--color->len[port]) return;
  }
  color->occupied &= (uint8_t)~(1u << port);
}

static inline Wavelet *input_head(const Color *color) { return color->input + color->input_head; }

static inline void input_push(Sim *sim, Color *color, Wavelet w) {
  if (!color->input) color->input = take(sim, CORE_RING * sizeof(Wavelet));
  color->input[(color->input_head + color->input_len++) & (CORE_RING - 1)] = w;
}

static inline uint32_t input_pop(Pe *pe, Color *color) {
  uint32_t data = input_head(color)->data;
  color->input_head = (color->input_head + 1) & (CORE_RING - 1);
  if (!--color->input_len) {
    pe->arrived &= ~((uint32_t)1 << color->color);
    color->input_head = 0; /* one cache line less */
  }
  return data;
}

static inline Wavelet *output_head(const Pe *pe, int queue) { return pe->outputs[queue] + pe->output_head[queue]; }

static inline void output_push(Sim *sim, Pe *pe, int queue, Wavelet w) {
  if (!pe->outputs[queue]) pe->outputs[queue] = take(sim, CORE_RING * sizeof(Wavelet));
  pe->outputs[queue][(pe->output_head[queue] + pe->output_len[queue]++) & (CORE_RING - 1)] = w;
  pe->outputs_mask |= (uint8_t)(1u << queue);
}

static inline void output_drop(Pe *pe, int queue) {
  pe->output_head[queue] = (pe->output_head[queue] + 1) & (CORE_RING - 1);
  if (!--pe->output_len[queue]) {
    pe->outputs_mask &= (uint8_t)~(1u << queue);
    pe->output_head[queue] = 0;
  }
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

/* The earliest fault counts: by cycle, phase and place, so that the order of PEs in a list does not. */
static void fault_at(Sim *sim, Pe *pe, uint64_t cycle, int kind, int64_t a, int64_t b, int64_t c, int pc) {
  uint64_t number = (uint64_t)(pe->number), order = (uint64_t)sim->phase << 40 | number;
  Fault *f = &sim->fault;
  if (f->kind && (f->cycle < cycle || (f->cycle == cycle && f->order <= order))) return;
  *f = (Fault){cycle, order, a, b, c, kind, (int32_t)number, pc};
}

static int fault(Sim *sim, Pe *pe, uint64_t now, int kind, int64_t a, int64_t b, int64_t c) {
  fault_at(sim, pe, now, kind, a, b, c, pe->acting >= 0 ? pe->acting : pe->pc);
  pe->failed = 1; /* it does nothing any more; the run ends when its cycle comes */
  return 0;
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
    memset(state->first, NO_RING, sizeof state->first);
  }
  return state;
}

/* A color that the layout gave no route gets an empty one. */
static void give_route(Color *color) {
  static const Route PLAIN = {.positions = 1, .valid = 1, .filter = NO_FILTER};
  if (color->route) return;
  color->route = &PLAIN;
  color->positions = color->valid = 1;
}

/* Where the counter goes back to 0. A sparse counter has two limits, then none: 0. */
static inline int64_t limit_of(const Color *color) {
  const Route *r = color->route;
  return color->laps == 0 ? r->limit1 : color->laps == 1 ? r->limit2 : 0;
}

/* The route of a color, to be changed in this PE alone. */
static Route *own_route(Sim *sim, Color *color) {
  if (!color->owns_route) {
    Route *own = take(sim, sizeof(Route));
    *own = *color->route;
    color->route = own;
    color->owns_route = 1;
  }
  return (Route *)color->route;
}

/* ---- routes as memory-mapped registers: sim/registers.py ------------------------------------------------------- */

enum { ROUTE_REGISTERS = 2 * 0x7F20, SWITCH_REGISTERS = 2 * 0x7F40, INVALID_PORT = 5, IS_INPUT = 8 };
static const uint8_t REGISTER_ORDER[5] = {WEST, EAST, SOUTH, NORTH, RAMP};

static uint32_t packed_ports(uint32_t mask) {
  uint32_t bits = 0;
  for (int i = 0; i < 5; i++) bits |= (mask >> REGISTER_ORDER[i] & 1) << i;
  return bits;
}

static uint32_t unpacked_ports(uint32_t bits) {
  uint32_t mask = 0;
  for (int i = 0; i < 5; i++) mask |= (bits >> i & 1) << REGISTER_ORDER[i];
  return mask;
}

/* The color of a register's address, *is_switch: of its switch; NULL: no register of this architecture. */
static Color *register_of(Sim *sim, Pe *pe, int64_t address, int size, int *is_switch) {
  if (sim->is_wse3 || size != 2 || (address & 1) || address < ROUTE_REGISTERS) return NULL;
  *is_switch = address >= SWITCH_REGISTERS;
  int64_t number = (address - (*is_switch ? SWITCH_REGISTERS : ROUTE_REGISTERS)) / 2;
  if (number >= NUM_COLORS) return NULL;
  Color *color = color_of(sim, pe, (int)number);
  give_route(color);
  return color;
}

static uint32_t read_register(const Color *color, int is_switch) {
  const Route *route = color->route;
  int has_base = color->valid & 1;
  if (!is_switch)
    return packed_ports(has_base ? color->tx[0] : 0) | packed_ports(has_base ? color->rx[0] : 0) << 5 |
           (uint32_t)(route->swap >> 1 & 1) << 10 | (uint32_t)(route->swap & 1) << 11 | (uint32_t)route->pop << 12 |
           (uint32_t)color->frozen << 14;
  uint32_t word = (uint32_t)color->position << 13 | (uint32_t)color->ring << 12;
  for (int n = 1; n < 4; n++) {
    uint32_t field = INVALID_PORT | IS_INPUT;
    if (n < color->positions && color->valid >> n & 1) {
      int is_input = color->said[n] & 1;
      uint32_t bits = packed_ports(is_input ? color->rx[n] : color->tx[n]);
      field = (bits ? (uint32_t)__builtin_ctz(bits) : INVALID_PORT) | (is_input ? IS_INPUT : 0);
    }
    word |= field << 4 * (n - 1);
  }
  return word;
}

static void write_register(Color *color, int is_switch, uint32_t word) {
  if (!(color->valid & 1)) color->rx[0] = color->tx[0] = 0;
  if (!is_switch) {
    color->rx[0] = (uint8_t)(unpacked_ports(word >> 5) | (color->rx[0] & 1u << HOST));
    color->tx[0] = (uint8_t)(unpacked_ports(word) | (color->tx[0] & 1u << HOST));
    color->valid |= 1;
    color->frozen = word >> 14 & 1;
  } else {
    color->position = word >> 13 & 3;
    color->ring = word >> 12 & 1;
    color->positions = 4;
    for (int n = 1; n < 4; n++) {
      uint32_t field = word >> 4 * (n - 1) & 15;
      color->valid &= (uint8_t)~(1u << n);
      if ((field & 7) >= INVALID_PORT) continue;
      color->valid |= (uint8_t)(1u << n);
      uint8_t mask = (uint8_t)(1u << REGISTER_ORDER[field & 7]);
      color->said[n] = field & IS_INPUT ? 1 : 2;
      color->rx[n] = field & IS_INPUT ? mask : 0;
      color->tx[n] = field & IS_INPUT ? 0 : mask;
    }
  }
  for (int n = 1; n < color->positions; n++) {
    if (!(color->said[n] & 1)) color->rx[n] = color->rx[0];
    if (!(color->said[n] & 2)) color->tx[n] = color->tx[0];
  }
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

/* The same for scalar instructions, which reach registers too. */
static inline uint64_t load_scalar(Sim *sim, Pe *pe, uint64_t now, int64_t address, int size) {
  int is_switch;
  const Color *color = bad_address(address, size) ? register_of(sim, pe, address, size, &is_switch) : NULL;
  return color ? read_register(color, is_switch) : read_memory(sim, pe, now, address, size);
}

static inline void store_scalar(Sim *sim, Pe *pe, uint64_t now, int64_t address, int size, uint64_t value) {
  int is_switch;
  Color *color = bad_address(address, size) ? register_of(sim, pe, address, size, &is_switch) : NULL;
  if (!color) { write_memory(sim, pe, now, address, size, value); return; }
  write_register(color, is_switch, (uint32_t)value & 0xFFFF);
  news(sim, pe, color->color, now);
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
