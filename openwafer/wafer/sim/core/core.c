/* The fast engine: sim/reference.py in C, cycle for cycle. Called by sim/core.py through ctypes; one translation unit.
   docs/machine.md is the meaning. Single-threaded; nothing depends on the order of PEs in a list. */

#define _GNU_SOURCE
#include <sys/mman.h>
#include "machine.h"
#include "numerics.h"
#include "state.h"
#include "vector.h"
#include "thread.h"
#include "router.h"

#define API __attribute__((visibility("default")))

/* ---- loading ----------------------------------------------------------------------------------------------------- */

/* One program as core.py hands it over; everything is copied. */
typedef struct {
  const uint16_t *code;
  const uint64_t *constants;
  const int32_t *functions, *vectors, *loads, *initial_loads, *fifos, *tasks, *setup;
  const uint64_t *initial_slots;
  const uint8_t *memory, *queues; /* queues: iq_color[8], oq_color[8], iq_of_color[24] */
  int32_t num_code, num_constants, num_functions, num_vectors, num_loads, num_initial, num_fifos, num_tasks,
      num_memory, num_iterators, num_setup;
  uint32_t activated, blocked;
} ProgramIn;

static void *copy(Sim *sim, const void *from, size_t bytes) {
  void *to = take(sim, bytes ? bytes : 1);
  if (bytes) memcpy(to, from, bytes);
  return to;
}

static void free_tables(Sim *sim) {
  free(sim->pes), free(sim->cores), free(sim->core_next), free(sim->routers), free(sim->router_next);
  free(sim->moves), free(sim->log), free(sim->events), free(sim);
}

API Sim *ow_new(int32_t width, int32_t height, int32_t is_wse3, const int32_t *timing, const int32_t *iq_depth,
                const int32_t *oq_depth, int32_t router_depth, const int32_t *widths) {
  Sim *sim = calloc(1, sizeof(Sim));
  if (!sim) return NULL;
  sim->width = width;
  sim->height = height;
  sim->num_pes = width * height;
  sim->is_wse3 = is_wse3;
  sim->router_depth = router_depth;
  sim->step[EAST] = sizeof(Pe), sim->step[SOUTH] = width * (int32_t)sizeof(Pe);
  sim->step[WEST] = -sim->step[EAST], sim->step[NORTH] = -sim->step[SOUTH];
  memcpy(&sim->timing, timing, sizeof sim->timing);
  memcpy(sim->iq_depth, iq_depth, sizeof sim->iq_depth);
  memcpy(sim->oq_depth, oq_depth, sizeof sim->oq_depth);
  memcpy(sim->widths, widths, sizeof sim->widths);
  size_t pes = (size_t)sim->num_pes;
  sim->pes = aligned_alloc(CACHE_LINE, pes * sizeof(Pe));
  if (sim->pes) memset(sim->pes, 0, pes * sizeof(Pe));
  sim->cores = malloc(pes * sizeof(uint32_t));
  sim->core_next = malloc(pes * sizeof(uint64_t));
  sim->router_next = malloc(pes * sizeof(uint64_t));
  sim->routers = malloc(pes * sizeof(uint32_t));
  sim->memory = mmap(NULL, pes * MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (sim->memory == MAP_FAILED) sim->memory = NULL;
  if (sim->pes && sim->cores && sim->core_next && sim->routers && sim->router_next && sim->memory)
    return sim;
  if (sim->memory) munmap(sim->memory, pes * MEMORY_BYTES);
  free_tables(sim);
  return NULL;
}

API void ow_reserve(Sim *sim, int32_t programs, int32_t tables) {
  sim->programs = take(sim, (size_t)programs * sizeof(Program));
  sim->tables = take(sim, (size_t)tables * sizeof(Route *));
  sim->table_len = take(sim, (size_t)tables * sizeof(int32_t));
}

static void number_dsr(Program *p, int file, int reg) {
  if (p->dsr_of[file][reg] == 255) p->dsr_of[file][reg] = (uint8_t)p->num_dsrs++;
}

/* The stretches of a memory image that are not zero, so that a PE's untouched pages stay untouched. */
static void find_extents(Sim *sim, Program *p, uint32_t bytes) {
  enum { GRAIN = 256 };
  p->extents = take(sim, (MEMORY_BYTES / GRAIN + 1) * sizeof(Extent));
  for (uint32_t at = 0; at < bytes; at += GRAIN) {
    uint32_t room = bytes - at < GRAIN ? bytes - at : GRAIN, i = 0;
    while (i < room && !p->memory[at + i]) i++;
    if (i == room) continue;
    Extent *last = p->num_extents ? &p->extents[p->num_extents - 1] : NULL;
    if (last && last->first + last->num_bytes == at) last->num_bytes += room;
    else p->extents[p->num_extents++] = (Extent){at, room};
  }
}

API void ow_add_program(Sim *sim, const ProgramIn *in) {
  Program *p = &sim->programs[sim->num_programs++];
  p->code = copy(sim, in->code, (size_t)in->num_code * 8);
  p->constants = copy(sim, in->constants, (size_t)in->num_constants * 8);
  p->functions = copy(sim, in->functions, (size_t)in->num_functions * sizeof(Function));
  p->vectors = copy(sim, in->vectors, (size_t)in->num_vectors * sizeof(Vector));
  p->loads = copy(sim, in->loads, (size_t)in->num_loads * sizeof(DsrLoad));
  p->initial_loads = copy(sim, in->initial_loads, (size_t)in->num_initial * sizeof(DsrLoad));
  p->initial_slots = copy(sim, in->initial_slots, (size_t)in->num_initial * 24);
  p->fifos = copy(sim, in->fifos, (size_t)in->num_fifos * sizeof(FifoRow));
  p->memory = copy(sim, in->memory, (size_t)in->num_memory);
  find_extents(sim, p, (uint32_t)in->num_memory);
  memcpy(p->iq_color, in->queues, 8);
  memcpy(p->oq_color, in->queues + 8, 8);
  memcpy(p->iq_of_color, in->queues + 16, NUM_COLORS);
  p->setup = copy(sim, in->setup, (size_t)in->num_setup * 12);
  p->num_setup = in->num_setup;
  p->num_fifos = in->num_fifos;
  p->num_initial = in->num_initial;
  p->num_iterators = in->num_iterators;
  p->activated = in->activated;
  p->blocked = in->blocked;
  const Task *tasks = (const Task *)in->tasks;
  for (int i = 0; i < in->num_tasks; i++) {
    const Task *t = &tasks[i];
    if (t->kind == LOCAL_TASK) p->local_mask |= (uint32_t)1 << t->id;
    else if (t->kind == DATA_TASK) p->data_mask |= (uint32_t)1 << t->id;
    else p->control_mask |= (uint64_t)1 << t->id;
    p->tasks[t->kind == LOCAL_TASK ? t->id : t->kind == DATA_TASK ? 32 + t->id : 64 + t->id] = *t;
  }
  memset(p->dsr_of, 255, sizeof p->dsr_of);
  for (int i = 0; i < in->num_loads; i++) number_dsr(p, p->loads[i].file, p->loads[i].reg);
  for (int i = 0; i < in->num_initial; i++) number_dsr(p, p->initial_loads[i].file, p->initial_loads[i].reg);
}

API void ow_add_routes(Sim *sim, const int32_t *rows, int32_t count) {
  sim->tables[sim->num_tables] = copy(sim, rows, (size_t)count * sizeof(Route));
  sim->table_len[sim->num_tables++] = count;
}

static void load_program(Sim *sim, Pe *pe, const Program *p) {
  pe->program = p;
  for (int i = 0; i < p->num_extents; i++)
    memcpy(pe->memory + p->extents[i].first, p->memory + p->extents[i].first, p->extents[i].num_bytes);
  pe->activated = p->activated;
  pe->blocked = p->blocked;
  memcpy(pe->iq_color, p->iq_color, 8);
  memcpy(pe->oq_color, p->oq_color, 8);
  if (p->num_dsrs) pe->dsrs = take(sim, (size_t)p->num_dsrs * sizeof(Dsr));
  for (int i = 0; i < p->num_initial; i++) {
    const DsrLoad *load = &p->initial_loads[i];
    Dsr *dsr = &pe->dsrs[p->dsr_of[load->file][load->reg]];
    memcpy(dsr->slots, p->initial_slots + 3 * i, sizeof dsr->slots);
    dsr->load = load;
  }
  if (p->num_iterators) pe->iterators = take(sim, (size_t)p->num_iterators * sizeof(Operation));
  if (p->num_fifos) pe->fifos = take(sim, (size_t)p->num_fifos * sizeof(Fifo));
  for (int i = 0; i < p->num_fifos; i++) pe->fifos[i].items = take(sim, (size_t)p->fifos[i].capacity * 4);
  for (int i = 0; i < p->num_setup; i++) {
    int64_t a = p->setup[3 * i + 1], b = p->setup[3 * i + 2];
    system_call(sim, pe, 0, p->setup[3 * i], &a, &b);
  }
  wake_core(sim, pe, 0);
}

/* program_of, routes_of: [height][width]; -1 in program_of: no program. */
API void ow_start(Sim *sim, const int32_t *program_of, const int32_t *routes_of) {
  for (int32_t i = 0; i < sim->num_pes; i++) {
    Pe *pe = &sim->pes[i];
    pe->memory = sim->memory + (size_t)i * MEMORY_BYTES;
    pe->number = i;
    pe->x = i % sim->width;
    pe->y = i / sim->width;
    pe->outside = (uint8_t)(!pe->y << NORTH | (pe->y == sim->height - 1) << SOUTH | (pe->x == sim->width - 1) << EAST | !pe->x << WEST);
    pe->cmd_done = 1;
    sim->core_next[i] = sim->router_next[i] = pe->counted = NEVER;
    pe->acting = -1;
    pe->last_task = 31;
    pe->main_class = 3;
    pe->lfsr = 0xDEADBEEFu;
    memset(pe->iq_color, NO_COLOR, 8);
    memset(pe->oq_color, NO_COLOR, 8);
    const Route *routes = sim->tables[routes_of[i]];
    for (int k = 0; k < sim->table_len[routes_of[i]]; k++) {
      const Route *r = &routes[k];
      Color *color = color_of(sim, pe, r->color);
      color->route = r;
      color->positions = (uint8_t)r->positions;
      color->valid = (uint8_t)r->valid;
      color->position = (uint8_t)r->position;
      color->frozen = (uint8_t)r->teardown;
      color->ring = (uint8_t)r->ring;
      color->swap = (uint8_t)r->swap;
      if (r->swap) pe->outside |= HAS_SWAPS;
      color->counter = r->filter == NO_FILTER ? 0 : (uint32_t)r->init_counter;
      for (int n = 0; n < 4; n++) {
        color->rx[n] = (uint8_t)r->rx[n], color->tx[n] = (uint8_t)r->tx[n];
        if (r->valid >> n & 1) color->said[n] = (uint8_t)((r->rx[n] != r->rx[0]) | (r->tx[n] != r->tx[0]) << 1);
      }
    }
    if (program_of[i] >= 0) load_program(sim, pe, &sim->programs[program_of[i]]);
  }
}

API void ow_free(Sim *sim) {
  for (Chunk *chunk = sim->arena; chunk;) {
    Chunk *next = chunk->next;
    free(chunk);
    chunk = next;
  }
  munmap(sim->memory, (size_t)sim->num_pes * MEMORY_BYTES);
  free_tables(sim);
}

/* ---- the host's side --------------------------------------------------------------------------------------------- */

API uint8_t *ow_memory(Sim *sim, int32_t pe) { return sim->pes[pe].memory; }

/* The same number of bytes from a rectangle of PEs, an address each; blocks [height][width][bytes]. */
API void ow_copy(Sim *sim, int32_t x, int32_t y, int32_t w, int32_t h, const int32_t *addresses, int64_t bytes,
                 uint8_t *blocks, int32_t out) {
  for (int32_t i = 0; i < w * h; i++) {
    uint8_t *memory = sim->pes[(y + i / w) * sim->width + x + i % w].memory + addresses[i];
    if (out) memcpy(blocks + i * bytes, memory, (size_t)bytes);
    else memcpy(memory, blocks + i * bytes, (size_t)bytes);
  }
}

API void ow_launch(Sim *sim, int32_t x, int32_t y, int32_t w, int32_t h, const int32_t *functions,
                   const int64_t *arguments, int32_t count) {
  const int64_t *values = copy(sim, arguments, (size_t)count * sizeof(int64_t));
  for (int32_t i = 0; i < w * h; i++) {
    Pe *pe = &sim->pes[(y + i / w) * sim->width + x + i % w];
    Launch *launch = take(sim, sizeof(Launch)), **end = &pe->launches;
    while (*end) end = &(*end)->next;
    *launch = (Launch){NULL, functions[i], count, values};
    *end = launch;
    pe->cmd_done = 0;
    if (pe->program) wake_core(sim, pe, sim->now);
  }
}

API void ow_send(Sim *sim, int32_t number, int32_t color, const uint32_t *words, int64_t count, int32_t control) {
  Pe *pe = &sim->pes[number];
  Color *state = color_of(sim, pe, color);
  for (int64_t i = 0; i < count; i++)
    push(sim, &state->host_in, (Wavelet){sim->now, words[i], !!control, 0, (uint8_t)color, 0});
  if (!count) return;
  state->occupied |= 1u << HOST;
  pe->queued |= (uint32_t)1 << color;
  news(sim, pe, color, sim->now);
}

API int64_t ow_received(const Sim *sim, int32_t number, int32_t color) {
  const Color *state = sim->pes[number].colors[color];
  return state ? state->host_out.len : 0;
}

API int64_t ow_receive(Sim *sim, int32_t number, int32_t color, uint32_t *words, int64_t count) {
  Color *state = sim->pes[number].colors[color];
  int64_t taken = 0;
  while (state && taken < count && state->host_out.len) words[taken++] = pop(&state->host_out).data;
  return taken;
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

enum { AHEAD = 4 };

/* What a router will be asked for soon: 3% of the time where routers are busy. */
static inline void prefetch(const Pe *pe) {
  __builtin_prefetch(&pe->queued);
  __builtin_prefetch(pe->colors);
}

/* Both phases of the present cycle; whether anything happened. */
static int one_cycle(Sim *sim) {
  int happened = 0;
  sim->phase = 0;
  for (int32_t i = 0; i < sim->num_cores;) {
    uint32_t number = sim->cores[i];
    if (sim->core_next[number] <= sim->now) happened |= step_core(sim, &sim->pes[number]);
    if (sim->core_next[number] == NEVER) {
      sim->pes[number].in_cores = 0;
      sim->cores[i] = sim->cores[--sim->num_cores];
    } else i++;
  }
  if (sim->fault.kind && sim->fault.cycle <= sim->now) return 1;
  sim->phase = 1;
  sim->num_moves = 0;
  sim->turn = (int32_t)(sim->now % NUM_COLORS);
  int32_t polled = sim->num_routers;
  for (int32_t i = 0; i < polled; i++) {
    uint32_t number = sim->routers[i];
    if (i + AHEAD < polled) prefetch(&sim->pes[sim->routers[i + AHEAD]]);
    if (sim->router_next[number] <= sim->now) sim->router_next[number] = decide(sim, &sim->pes[number]);
  }
  if (sim->fault.kind && sim->fault.cycle <= sim->now) return 1;
  for (int32_t i = 0; i < sim->num_moves; i++) move(sim, &sim->moves[i]);
  happened |= sim->num_moves != 0;
  for (int32_t i = polled - 1; i >= 0; i--) {
    uint32_t number = sim->routers[i];
    uint64_t *next = &sim->router_next[number];
    Pe *pe = &sim->pes[number];
    if (pe->outputs_mask | pe->flushing) happened |= inject(sim, pe, next);
    if (*next < IDLE) continue;
    *next = NEVER;
    sim->routers[i] = sim->routers[--sim->num_routers];
  }
  return happened;
}

/* The first cycle after this at which something could happen; NEVER if nothing can. */
static uint64_t next_event(const Sim *sim) {
  uint64_t soonest = sim->fault.kind ? sim->fault.cycle : NEVER;
  for (int32_t i = 0; i < sim->num_cores; i++) {
    uint64_t at = sim->core_next[sim->cores[i]];
    if (at < soonest) soonest = at;
  }
  for (int32_t i = 0; i < sim->num_routers; i++) {
    uint64_t at = sim->router_next[sim->routers[i]];
    if (at < soonest) soonest = at;
  }
  return soonest;
}

/* Runs until the condition holds (STOP_DONE), nothing can happen, `max_cycles` are over, or a program fails. */
API int32_t ow_run(Sim *sim, int32_t mode, int32_t x, int32_t y, int32_t w, int32_t h, int32_t color, int64_t count,
                   uint64_t max_cycles) {
  uint64_t limit = sim->now + max_cycles, last = sim->now;
  sim->mode = mode;
  sim->x0 = x, sim->y0 = y, sim->x1 = x + w, sim->y1 = y + h;
  sim->color = color, sim->count = count, sim->horizon = limit;
  sim->left = 0;
  for (int32_t i = 0; i < w * h; i++) {
    int32_t number = (y + i / w) * sim->width + x + i % w;
    if (mode == RUN_COMMANDS) sim->left += !sim->pes[number].cmd_done;
    else if (mode == RUN_RECEIVED) sim->left += ow_received(sim, number, color) < count;
  }
  while (mode == RUN_IDLE || sim->left) {
    if (sim->now >= limit) return STOP_LIMIT;
    if (one_cycle(sim)) {
      if (sim->fault.kind && sim->fault.cycle <= sim->now) return STOP_FAULT;
      last = ++sim->now;
      continue;
    }
    uint64_t following = next_event(sim);
    if (following >= NEVER) {
      sim->now = last > sim->busy_until ? last : sim->busy_until;
      return STOP_IDLE;
    }
    sim->now = following <= sim->now ? sim->now + 1 : following < limit ? following : limit;
  }
  return STOP_DONE;
}

API uint64_t ow_cycle(const Sim *sim) { return sim->now; }

/* ---- reports ----------------------------------------------------------------------------------------------------- */

/* cycle, kind, pe, pc, a, b, c */
API void ow_fault(const Sim *sim, int64_t *out) {
  const Fault *f = &sim->fault;
  int64_t fields[] = {(int64_t)f->cycle, f->kind, f->pe, f->pc, f->a, f->b, f->c};
  memcpy(out, fields, sizeof fields);
}

API void ow_totals(const Sim *sim, int64_t *out) {
  out[0] = sim->instructions, out[1] = sim->elements, out[2] = sim->hops, out[3] = sim->num_log;
}

API void ow_activity(const Sim *sim, int64_t *busy, int64_t *links) {
  for (int32_t i = 0; i < sim->num_pes; i++) {
    busy[i] = sim->pes[i].busy;
    memcpy(links + 4 * (size_t)i, sim->pes[i].links, sizeof sim->pes[i].links);
  }
}

/* Notes what a PE does from now on, at most `limit` events of the end of which is known. */
API void ow_watch(Sim *sim, int32_t pe, int64_t limit) {
  Watch *watch = take(sim, sizeof(Watch));
  watch->left = limit;
  sim->pes[pe].watch = watch;
}

/* The events so far, those that still go on ending now; at most `room` rows, the number of all. */
API int64_t ow_events(Sim *sim, EventRow *rows, int64_t room) {
  int64_t found = 0;
  for (; found < sim->num_events; found++)
    if (found < room) rows[found] = sim->events[found];
  for (int32_t i = 0; i < sim->num_pes; i++) {
    const Watch *watch = sim->pes[i].watch;
    for (int n = 0; watch && n < (NUM_THREADS + 1) * NUM_EVENT_KINDS; n++) {
      const Open *open = &watch->open[n / NUM_EVENT_KINDS][n % NUM_EVENT_KINDS];
      if (!open->what) continue;
      uint64_t end = open->start > sim->now ? open->start : sim->now;
      if (found < room)
        rows[found] = (EventRow){open->start, end, open->name, i, n / NUM_EVENT_KINDS, n % NUM_EVENT_KINDS, 0};
      found++;
    }
  }
  return found;
}

API const LogEntry *ow_log(const Sim *sim) { return sim->log; }

typedef struct { int32_t pe, thread, what, a, b, pc; } WaitRow; /* thread -1: main, 0 to 7, 8: an input's color in a, 9: that left */

/* What cannot go on; at most `room` rows, the number of all of them. */
API int64_t ow_waits(Sim *sim, WaitRow *rows, int64_t room) {
  int64_t found = 0;
#define ROW(...) do { if (found < room) rows[found] = (WaitRow){__VA_ARGS__}; found++; } while (0)
  for (int32_t i = 0; i < sim->num_pes; i++) {
    Pe *pe = &sim->pes[i];
    if (!pe->program) continue;
    Obstacle why = {0};
    if (pe->has_sync) {
      is_blocked(sim, pe, sim->now, pe->sync, &why);
      ROW(i, -1, why.kind, why.a, why.b, pe->sync->pc);
    } else if (pe->running) {
      const uint16_t *word = pe->program->code + 4 * (size_t)pe->pc;
      int op = word[0] >> 4;
      if (op == IGET || op == IPUT) iterator_waits(sim, pe, sim->now, word[0], &pe->iterators[op == IGET ? word[2] : word[1]], &why);
      ROW(i, -1, why.kind, why.a, why.b, pe->pc);
    }
    for (int n = 0; n < NUM_THREADS; n++) {
      if (!(pe->threads_mask >> n & 1)) continue;
      why = (Obstacle){0};
      is_blocked(sim, pe, sim->now, pe->threads[n], &why);
      ROW(i, n, why.kind, why.a, why.b, pe->threads[n]->pc);
    }
    for (uint32_t left = pe->arrived; left; left &= left - 1) {
      int color = __builtin_ctz(left);
      ROW(i, NUM_THREADS, 0, color, pe->colors[color]->input_len, -1);
    }
  }
  for (int32_t i = 0; i < sim->num_pes; i++) {
    if (!(sim->pes[i].outside & ~HAS_SWAPS)) continue;
    for (int color = 0; color < NUM_COLORS; color++)
      for (int port = 0; port < RAMP; port++) {
        const Color *state = sim->pes[i].colors[color];
        if (state && state->gone[port]) ROW(i, NUM_THREADS + 1, port, color, state->gone[port], -1);
      }
  }
  return found;
}
