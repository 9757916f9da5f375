/* The core of a PE: tasks, scalar instructions, system calls, and which thread issues. */
#ifndef THREAD_H
#define THREAD_H

#include "watch.h"

/* ---- tasks ------------------------------------------------------------------------------------------------------- */

enum { PICK_NONE = -1, PICK_DATA = 32, PICK_CONTROL = 64, PICK_LAUNCH = 128 };

static inline const Wavelet *arrived_head(const Pe *pe, int color, uint64_t now) {
  if (color >= NUM_COLORS || !(pe->arrived >> color & 1)) return NULL;
  const Wavelet *head = input_head(pe->colors[color]);
  return head->ready <= now ? head : NULL;
}

/* The task ids, as bits, that stand for what comes on a color: on WSE-3 of the queues that take it. */
static uint32_t ids_of(const Sim *sim, const Pe *pe, int color) {
  if (!sim->is_wse3) return (uint32_t)1 << color;
  uint32_t bits = 0;
  for (int queue = 0; queue < 8; queue++) bits |= (uint32_t)(pe->iq_color[queue] == color) << queue;
  return bits;
}

/* Whether a control wavelet on a color is for an operation: to end it, or with TRANSFORM_BIT an element. */
static int is_awaited(const Sim *sim, const Pe *pe, int color) {
  for (uint32_t left = pe->threads_mask; left; left &= left - 1) {
    const Operation *o = pe->threads[__builtin_ctz(left)];
    const Source *sources[] = {&o->src0, &o->src1};
    for (int i = 0; i < 2; i++)
      if (is_input(sources[i]) && (o->has_on_control || sources[i]->flags & TRANSFORM_BIT) &&
          color_in(sim, pe, sources[i]) == color)
        return 1;
  }
  return 0;
}

/* What may run among tasks of one priority. */
static int pick_among(const Sim *sim, const Pe *pe, uint64_t now, int is_high) {
  const Program *program = pe->program;
  uint32_t high = pe->has_high ? pe->high_tasks : 0, group = (is_high ? high : ~high) & ~pe->blocked;
  uint32_t local = pe->activated & program->local_mask & group, data = 0;
  if (pe->arrived) {
    for (uint32_t left = program->data_mask & group; left; left &= left - 1) {
      int task = __builtin_ctz(left);
      const Wavelet *head = arrived_head(pe, sim->is_wse3 ? (task < 8 ? pe->iq_color[task] : NO_COLOR) : task, now);
      if (head && !head->control) data |= (uint32_t)1 << task;
    }
  }
  uint32_t ready = local | data;
  if (ready) {
    int from = (pe->last_task + 1) & 31;
    uint32_t turned = from ? ready >> from | ready << (32 - from) : ready;
    int task = (__builtin_ctz(turned) + from) & 31;
    return local >> task & 1 ? task : PICK_DATA + task;
  }
  for (uint32_t left = pe->arrived; left; left &= left - 1) {
    int color = __builtin_ctz(left);
    const Wavelet *head = arrived_head(pe, color, now);
    if (!head || !head->control || is_awaited(sim, pe, color)) continue;
    uint32_t bits = ids_of(sim, pe, color);
    if (!(bits & pe->blocked) && !!(bits & high) == is_high) return PICK_CONTROL + color;
  }
  return PICK_NONE;
}

static int pick(const Sim *sim, const Pe *pe, uint64_t now) {
  int picked = pe->has_high ? pick_among(sim, pe, now, 1) : PICK_NONE;
  if (picked == PICK_NONE) picked = pick_among(sim, pe, now, 0);
  return picked == PICK_NONE && pe->launches ? PICK_LAUNCH : picked;
}

static int grow(Sim *sim, Pe *pe, uint64_t now, int slots) {
  int needed = pe->fp + slots;
  if (needed > STACK_SLOTS) return fault(sim, pe, now, FAULT_STACK, 0, 0, 0);
  if (needed <= pe->num_slots) return 1;
  int room = pe->num_slots ? pe->num_slots * 2 : 32;
  if (room < needed) room = needed;
  int64_t *frames = take(sim, (size_t)room * sizeof(int64_t));
  if (pe->num_slots) memcpy(frames, pe->frames, (size_t)pe->num_slots * sizeof(int64_t));
  pe->frames = frames;
  pe->num_slots = room;
  return 1;
}

static int start(Sim *sim, Pe *pe, uint64_t now, int function, int arguments) {
  const Function *f = &pe->program->functions[function];
  pe->fp = pe->num_calls = 0;
  pe->pc = f->entry;
  pe->running = 1;
  return grow(sim, pe, now, f->slots > arguments ? f->slots : arguments);
}

static void start_bound(Sim *sim, Pe *pe, uint64_t now, const Task *task, uint32_t word) {
  if (!start(sim, pe, now, task->function, task->arguments)) return;
  for (int i = 0, at = 0; i < task->arguments; at += task->bits[i++]) {
    int bits = task->bits[i];
    uint64_t value = at < 32 ? (uint64_t)word >> at & (((uint64_t)1 << bits) - 1) : 0;
    int64_t made = (int64_t)value;
    if (task->is_signed[i] && value >> (bits - 1)) made -= (int64_t)1 << bits;
    pe->frames[i] = made;
  }
}

static void start_task(Sim *sim, Pe *pe, uint64_t now, int picked) {
  const Program *program = pe->program;
  if (picked == PICK_LAUNCH) {
    Launch *launch = pe->launches;
    pe->launches = launch->next;
    if (start(sim, pe, now, launch->function, launch->arguments))
      memcpy(pe->frames, launch->values, (size_t)launch->arguments * sizeof(int64_t));
  } else if (picked >= PICK_CONTROL) {
    int color = picked - PICK_CONTROL;
    uint32_t word = input_head(pe->colors[color])->data, entry = word >> 16 & 63;
    if (!(program->control_mask >> entry & 1)) { fault(sim, pe, now, FAULT_UNBOUND_CONTROL, color, entry, 0); return; }
    input_pop(pe, pe->colors[color]);
    news(sim, pe, color, now);
    start_bound(sim, pe, now, &program->tasks[64 + entry], word & 0xFFFF);
  } else if (picked >= PICK_DATA) {
    int task = picked - PICK_DATA, color = sim->is_wse3 ? pe->iq_color[task] : task;
    uint32_t word = input_pop(pe, pe->colors[color]);
    news(sim, pe, color, now);
    pe->last_task = (uint8_t)task;
    start_bound(sim, pe, now, &program->tasks[32 + task], word);
  } else {
    pe->activated &= ~((uint32_t)1 << picked);
    pe->last_task = (uint8_t)picked;
    start(sim, pe, now, program->tasks[picked].function, 0);
  }
  pe->ready = now + (uint64_t)sim->timing.task_start;
}

/* ---- system calls ------------------------------------------------------------------------------------------------ */

static void log_entry(Sim *sim, Pe *pe, uint64_t now, int kind, int64_t value, int form) {
  if (sim->num_log == sim->log_capacity) {
    sim->log_capacity = sim->log_capacity ? sim->log_capacity * 2 : 256;
    LogEntry *log = realloc(sim->log, (size_t)sim->log_capacity * sizeof(LogEntry));
    if (!log) abort();
    sim->log = log;
  }
  sim->log[sim->num_log++] = (LogEntry){now, value, (int32_t)(pe->number), kind, form, 0};
}

static int in_range(Sim *sim, Pe *pe, uint64_t now, int64_t value, int limit, int what) {
  return value >= 0 && value < limit ? 1 : fault(sim, pe, now, FAULT_RANGE, value, limit, what);
}

static void reroute(Sim *sim, Pe *pe, uint64_t now, int call, int64_t which, int64_t value) {
  if (!in_range(sim, pe, now, which, NUM_COLORS, 2)) return;
  Color *color = color_of(sim, pe, (int)which);
  give_route(color);
  int number = (int)(value & 3);
  uint8_t mask = (uint8_t)(value >> 8 & 0x3F);
  switch (call) {
    case TEARDOWN_EXIT: color->frozen = color->pending = 0; break;
    case SET_ROUTE:
      color->rx[0] = (uint8_t)(value & 0x3F);
      color->tx[0] = mask;
      color->valid |= 1;
      break;
    case SET_SWITCH_RX: case SET_SWITCH_TX: {
      uint8_t rx = color->rx[number], tx = color->tx[number];
      if (number >= color->positions || !(color->valid >> number & 1)) {
        rx = color->valid & 1 ? color->rx[0] : 0;
        tx = color->valid & 1 ? color->tx[0] : 0;
      }
      if (number >= color->positions) color->positions = (uint8_t)(number + 1);
      color->valid |= (uint8_t)(1u << number);
      color->said[number] |= call == SET_SWITCH_RX ? 1 : 2;
      color->rx[number] = call == SET_SWITCH_RX ? mask : rx;
      color->tx[number] = call == SET_SWITCH_RX ? tx : mask;
      break;
    }
    case SET_SWITCH_POSITION: color->position = (uint8_t)number; break;
    case INVALIDATE_SWITCHES: color->positions = 1; color->valid &= 1; break;
    case POP_MODE:
      if (in_range(sim, pe, now, value, 4, 3)) own_route(sim, color)->pop = (int32_t)value;
      break;
    case RING_MODE: color->ring = value != 0; break;
  }
  news(sim, pe, (int)which, now);
}

static void command_done(Sim *sim, Pe *pe) {
  if (pe->cmd_done) return;
  pe->cmd_done = 1;
  int x = pe->x, y = pe->y;
  if (sim->mode == RUN_COMMANDS && x >= sim->x0 && x < sim->x1 && y >= sim->y0 && y < sim->y1) sim->left--;
}

/* The color behind a number of a counter filter; NULL: none, which is a fault. */
static Color *filter_of(Sim *sim, Pe *pe, uint64_t now, int64_t which) {
  if (!in_range(sim, pe, now, which >> 8, 3, 4) || !in_range(sim, pe, now, which & 0xFF, NUM_COLORS, 2)) return NULL;
  Color *color = pe->colors[which & 0xFF];
  if (color && color->route && color->route->filter != NO_FILTER && color->route->filter != FILTER_RANGE) return color;
  fault(sim, pe, now, FAULT_FILTER, which & 0xFF, 0, 0);
  return NULL;
}

static int64_t filter_number(Sim *sim, Pe *pe, uint64_t now, int64_t which) {
  const Color *color = filter_of(sim, pe, now, which);
  if (!color) return 0;
  return which >> 8 == 0 ? (int64_t)color->counter : which >> 8 == 1 ? color->route->max_counter : limit_of(color);
}

static void set_filter_number(Sim *sim, Pe *pe, uint64_t now, int64_t which, int64_t value) {
  Color *color = filter_of(sim, pe, now, which);
  if (!color) return;
  value &= 0x7FFFFFFF;
  if (which >> 8 == 0) color->counter = (uint32_t)value;
  else if (which >> 8 == 1) own_route(sim, color)->max_counter = (int32_t)value;
  else if (color->laps == 0) own_route(sim, color)->limit1 = (int32_t)value;
  else {
    own_route(sim, color)->limit2 = (int32_t)value;
    color->laps = 1;
  }
  news(sim, pe, color->color, now);
}

static int color_taken_by(const Pe *pe, int queue) {
  if (pe->iq_color[queue] != NO_COLOR) return pe->iq_color[queue];
  for (int color = 0; color < NUM_COLORS; color++)
    if (pe->program->iq_of_color[color] == queue) return color;
  return NO_COLOR;
}

/* Bit masks of queues: empty | full << 8. */
static int64_t queue_status(const Sim *sim, const Pe *pe, uint64_t now, int is_output) {
  int64_t status = 0;
  const int32_t *depths = is_output ? sim->oq_depth : sim->iq_depth;
  for (int queue = 0; queue < 8 && depths[queue]; queue++) {
    int length = 0;
    if (is_output) length = pe->output_len[queue];
    else {
      int number = color_taken_by(pe, queue);
      const Color *color = number == NO_COLOR ? NULL : pe->colors[number];
      for (int i = 0; color && i < color->input_len; i++)
        length += color->input[(color->input_head + i) & (CORE_RING - 1)].ready <= now;
    }
    status |= (int64_t)(length == 0) << queue | (int64_t)(length >= depths[queue]) << (8 + queue);
  }
  return status;
}

/* What running the main thread alone has left to do for the order of turns. */
static inline void take_turn(Pe *pe) {
  if (pe->main_last) pe->turn[pe->main_class] = pe->main_last = 0;
}

static void system_call(Sim *sim, Pe *pe, uint64_t now, int call, int64_t *a, int64_t *b) {
  int64_t first = *a, second = *b;
  switch (call) {
    case UNBLOCK_CMD_STREAM: command_done(sim, pe); break;
    case TEARDOWN_PENDING:
      *a = second >= 0 && second < NUM_COLORS && pe->colors[second] && pe->colors[second]->pending;
      break;
    case QUEUE_FLUSHED: *a = second >= 0 && second < 8 && (pe->flushed >> second & 1); break;
    case QUEUE_FLUSH:
      if (!in_range(sim, pe, now, first, 8, 1)) break;
      pe->flushing |= (uint8_t)(1u << first);
      wake_router(sim, pe, now);
      break;
    case QUEUE_FLUSH_EXIT: if (first >= 0 && first < 8) pe->flushed &= (uint8_t)~(1u << first); break;
    case SET_INPUT_QUEUE:
      if (!in_range(sim, pe, now, first, 8, 0) || !in_range(sim, pe, now, second, NUM_COLORS, 2)) break;
      pe->iq_color[first] = (uint8_t)second;
      for (int i = 0; i < NUM_COLORS; i++)
        if (pe->colors[i]) pe->colors[i]->depth = 0;
      pe->alert = ~(uint32_t)0;
      wake_router(sim, pe, now);
      break;
    case SET_OUTPUT_QUEUE:
      if (in_range(sim, pe, now, first, 8, 1) && in_range(sim, pe, now, second, NUM_COLORS, 2))
        pe->oq_color[first] = (uint8_t)second;
      break;
    case LOG_STRING: case LOG_FLUSH: log_entry(sim, pe, now, call, first, 0); break;
    case LOG_VALUE: log_entry(sim, pe, now, call, first, (int)second); break;
    case SEED_RANDOM: pe->lfsr = (uint32_t)first; break;
    case RESET_COUNTER: pe->counter_zero = now; break;
    case FILTER: *a = filter_number(sim, pe, now, second); break;
    case SET_FILTER: set_filter_number(sim, pe, now, first, second); break;
    case QUEUE_STATUS: *a = queue_status(sim, pe, now, second != 0); break;
    case TASK_PRIORITY:
      if (!in_range(sim, pe, now, first, 32, 5)) break;
      pe->high_tasks = second ? pe->high_tasks | (uint32_t)1 << first : pe->high_tasks & ~((uint32_t)1 << first);
      pe->has_high = pe->high_tasks != 0;
      break;
    case MAIN_PRIORITY:
      if (!in_range(sim, pe, now, first, 4, 6)) break;
      take_turn(pe);
      pe->main_class = (uint8_t)first;
      break;
    case COMPLETED: *a = !pe->stopped; break;
    case FIFO_READ_LENGTH: case FIFO_WRITE_LENGTH:
      if (!in_range(sim, pe, now, first, pe->program->num_fifos, 7)) break;
      if (call == FIFO_READ_LENGTH) pe->fifos[first].read_length = (uint16_t)second;
      else pe->fifos[first].write_length = (uint16_t)second;
      break;
    case CONTROL_MASK: pe->transform = (uint32_t)(first & 63) << 16; break;
    case ROUTE:
      *a = 0;
      if (!in_range(sim, pe, now, second, NUM_COLORS, 2)) break;
      if (pe->colors[second] && pe->colors[second]->valid & 1)
        *a = pe->colors[second]->rx[0] | pe->colors[second]->tx[0] << 8;
      break;
    default: reroute(sim, pe, now, call, first, second);
  }
}

/* ---- instructions ------------------------------------------------------------------------------------------------ */

static int64_t random16(Pe *pe) {
  uint32_t s = pe->lfsr;
  for (int i = 0; i < 128; i++) s = s << 1 | ((s >> 22 ^ s >> 17) & 1);
  pe->lfsr = s;
  return s & 0xFFFF;
}

static void change_dsd(int op, uint64_t *to, const uint64_t *from, int64_t by) {
  uint64_t first = from[0], second = from[1], third = from[2], value = (uint64_t)by & 0xFFFF;
  const uint64_t base = (uint64_t)0xFFFF << 32;
  switch (op) {
    case DSDBASE: first = (first & ~base) | value << 32; break;
    case DSDLEN: first = (first & 0x0000FFFFFFFFFFFFu) | value << 48; break;
    case DSDSTRIDE: second = (second & ~(uint64_t)0xFFFF) | value; break;
    default: first = (first & ~base) | (((first >> 32) + value) & 0xFFFF) << 32;
  }
  to[0] = first, to[1] = second, to[2] = third;
}

static Operation *spare(Sim *sim, Operation **place) {
  if (!*place) *place = take(sim, sizeof(Operation));
  return *place;
}

/* `word`: the first of the instruction, IGET or IPUT. */
static inline int iterator_waits(Sim *sim, Pe *pe, uint64_t now, int word, const Operation *o, Obstacle *why) {
  int size = size_of(word & 15);
  return word >> 4 == IGET ? source_waits(sim, pe, now, o, &o->dest, size, 1, why)
                           : dest_waits(sim, pe, o, &o->dest, size, 1, why);
}

/* Whether the instruction at pc can be made now. A vector operation for a microthread that is busy waits. */
static int can_issue(Sim *sim, Pe *pe, uint64_t now) {
  const uint16_t *word = pe->program->code + 4 * (size_t)pe->pc;
  int op = word[0] >> 4;
  Obstacle why;
  if (op == VEC) {
    Operation made;
    int thread = thread_of(sim, pe, now, &pe->program->vectors[word[1 + 1] | (uint32_t)word[3] << 16], &made);
    return thread < 0 || !(pe->threads_mask >> thread & 1);
  }
  if (op == IGET || op == IPUT)
    return !iterator_waits(sim, pe, now, word[0], &pe->iterators[op == IGET ? word[2] : word[1]], &why);
  return 1;
}

/* Starts VEC number k. Returns its cycles; *local: it ended or only touches memory, and stays in the main thread. */
static uint64_t start_vector(Sim *sim, Pe *pe, uint64_t now, uint32_t k, int only_local, int *local) {
  const Vector *v = &pe->program->vectors[k];
  Operation *o = spare(sim, &pe->sync);
  pe->stopped = 0;
  memset(o, 0, offsetof(Operation, dest));
  *local = 0;
  int thread = thread_of(sim, pe, now, v, o);
  if (thread == -2) return 0;
  if (only_local && (thread >= 0 || uses_queue(&o->dest) || uses_queue(&o->src0) || uses_queue(&o->src1) ||
                     uses_queue(&o->scalar)))
    return 0;
  start_operation(sim, pe, now, v, o);
  uint64_t cost = (uint64_t)(sim->timing.vector_issue + v->loads * sim->timing.dsd_load +
                             (v->loads ? sim->timing.dsd_setup : 0));
  if (is_done(o)) {
    if (o->is_async) complete(sim, pe, now, &o->completion);
    *local = 1;
  } else if (thread >= 0) {
    Operation *idle = pe->threads[thread];
    pe->threads[thread] = o;
    pe->sync = idle;
    pe->threads_mask |= (uint8_t)(1u << thread);
    pe->next_issue[thread] = now + cost;
  } else {
    pe->has_sync = 1;
    *local = o->is_local;
  }
  return cost;
}

static inline void note_issue(Sim *sim, uint64_t cycle) {
  if (cycle >= sim->busy_until) sim->busy_until = cycle + 1;
}

/* Steps of the synchronous operation from cycle t on, before `until`; the cycle after the last. */
static uint64_t run_local(Sim *sim, Pe *pe, uint64_t t, uint64_t until) {
  Operation *o = pe->sync;
  while (t < until) {
    note_issue(sim, t);
    t += (uint64_t)step_operation(sim, pe, t, o);
    pe->busy++;
    if (is_done(o)) { pe->has_sync = 0; break; }
    if (pe->failed) break;
  }
  return t;
}

/* Instructions of the main thread from `now` on. Up to `until` it runs ahead: as long as nobody can see the difference,
   which is while no microthread runs and the instruction touches nothing but registers and the PE's own memory. */
static void run_main(Sim *sim, Pe *pe, uint64_t now, uint64_t until) {
  const Program *program = pe->program;
  const Timing *timing = &sim->timing;
  uint64_t t = now;
  int64_t *r = pe->frames + pe->fp;
  int go = 1, later = 0; /* later: the instruction at pc waits for its own cycle */
  while (go) {
    const uint16_t *word = program->code + 4 * (size_t)pe->pc;
    int op = word[0] >> 4, kind = word[0] & 15, a = word[1], b = word[2], c = word[3], following = pe->pc + 1;
    uint32_t k = (uint32_t)b | (uint32_t)c << 16;
    uint64_t cost = (uint64_t)timing->scalar;
    switch (op) {
      case MOV: r[a] = r[b]; break;
      case MOV3: { int64_t x = r[b], y = r[b + 1], z = r[b + 2]; r[a] = x, r[a + 1] = y, r[a + 2] = z; break; }
      case LDI: r[a] = (int32_t)k; cost = (uint64_t)timing->immediate; break;
      case LDK: r[a] = (int64_t)program->constants[k]; cost = (uint64_t)timing->immediate; break;
      case LDK3:
        for (int i = 0; i < 3; i++) r[a + i] = (int64_t)program->constants[k + (uint32_t)i];
        cost = (uint64_t)timing->immediate;
        break;
      case MUL: cost = (uint64_t)timing->multiply; goto arithmetic;
      case DIV: case REM:
        cost = (uint64_t)(is_float(kind) ? timing->divide_float : timing->divide_int);
        if (!is_float(kind) && !r[c]) { fault(sim, pe, t, FAULT_DIVIDE, 0, 0, 0); return; }
        goto arithmetic;
      case ADD: case SUB: case AND: case OR: case XOR: case SHL: case SHR: arithmetic:
        r[a] = is_float(kind) ? (int64_t)float_operation(op, (uint32_t)r[b], (uint32_t)r[c], kind == T_F16)
                              : integer_operation(op, r[b], r[c], kind);
        break;
      case ADDI: r[a] = wrap((int64_t)((uint64_t)r[b] + (uint64_t)(int64_t)(int16_t)c), kind); break;
      case NEG:
        r[a] = kind == T_F16 ? r[b] ^ 0x8000 : kind == T_F32 ? r[b] ^ 0x80000000ll
                                                             : wrap((int64_t)(0 - (uint64_t)r[b]), kind);
        break;
      case NOT: r[a] = wrap(~r[b], kind); break;
      case EQ: case NE: case LT: case LE: r[a] = compare(op, r[b], r[c], kind); break;
      case JMP: following = (int)k; cost = (uint64_t)timing->branch; break;
      case JZ: if (!r[a]) following = (int)k, cost = (uint64_t)timing->branch; break;
      case JNZ: if (r[a]) following = (int)k, cost = (uint64_t)timing->branch; break;
      case CALL: {
        const Function *f = &program->functions[k];
        if (pe->num_calls == pe->calls_capacity) {
          if (pe->num_calls >= STACK_SLOTS) { fault(sim, pe, t, FAULT_STACK, 0, 0, 0); return; }
          int room = pe->calls_capacity ? pe->calls_capacity * 2 : 8;
          Call *calls = take(sim, (size_t)room * sizeof(Call));
          if (pe->num_calls) memcpy(calls, pe->calls, (size_t)pe->num_calls * sizeof(Call));
          pe->calls = calls;
          pe->calls_capacity = room;
        }
        pe->calls[pe->num_calls++] = (Call){following, pe->fp};
        pe->fp += a;
        if (!grow(sim, pe, t, f->slots)) return;
        r = pe->frames + pe->fp;
        following = f->entry;
        cost = (uint64_t)timing->call;
        break;
      }
      case RET: case HALT:
        cost = (uint64_t)timing->call;
        if (op == RET && pe->num_calls) {
          Call back = pe->calls[--pe->num_calls];
          following = back.pc;
          pe->fp = back.fp;
          r = pe->frames + pe->fp;
        } else pe->running = 0, go = 0;
        break;
      case LD: case LDX: {
        int size = size_of(kind);
        uint64_t address = (uint64_t)r[b] + (op == LD ? (uint64_t)c : (uint64_t)r[c] * (uint64_t)size);
        if (t > now && bad_address((int64_t)address, size)) { later = 1; break; } /* a register: others see it */
        uint64_t value = load_scalar(sim, pe, t, (int64_t)address, size);
        r[a] = kind < T_F16 ? wrap((int64_t)value, kind) : (int64_t)value;
        cost = (uint64_t)timing->load;
        break;
      }
      case ST: case STX: {
        int size = size_of(kind);
        uint64_t address = (uint64_t)r[b] + (op == ST ? (uint64_t)c : (uint64_t)r[c] * (uint64_t)size);
        if (t > now && bad_address((int64_t)address, size)) { later = 1; break; }
        store_scalar(sim, pe, t, (int64_t)address, size, (uint64_t)r[a]);
        cost = (uint64_t)timing->store;
        break;
      }
      case CVT: r[a] = convert(r[b], c, kind); break;
      case ACTIVATE: case BLOCK: case UNBLOCK:
        cost = (uint64_t)timing->task_bit;
        if (r[a] < 0 || r[a] > 31) fault(sim, pe, t, FAULT_ID, r[a], 0, 0);
        else if (op == ACTIVATE) activate(sim, pe, t, r[a]);
        else {
          uint32_t bit = (uint32_t)1 << r[a], *bits = &pe->blocked, threads = pe->blocked_threads;
          if (kind == BLOCK_MICROTHREAD) bits = &threads;
          *bits = op == BLOCK ? *bits | bit : *bits & ~bit;
          pe->blocked_threads = (uint8_t)threads;
        }
        break;
      case VEC: {
        int local;
        cost = start_vector(sim, pe, t, k, t > now, &local);
        if (!cost) { later = 1; break; } /* it waits for its cycle; or a fault */
        if (!local) { go = 0; break; }
        if (pe->has_sync) {
          uint64_t first = t + cost;
          uint64_t end = until > now ? run_local(sim, pe, first, until) : first;
          cost = end - t;
          if (pe->has_sync) go = 0;
        }
        break;
      }
      case LDDSR: {
        const DsrLoad *load = &program->loads[k];
        Dsr *dsr = &pe->dsrs[program->dsr_of[load->file][load->reg]];
        memcpy(dsr->slots, r + load->slot, sizeof dsr->slots);
        dsr->load = load;
        cost = (uint64_t)timing->dsd_load;
        break;
      }
      case DSDBASE: case DSDLEN: case DSDSTRIDE: case DSDMOVE:
        change_dsd(op, (uint64_t *)r + a, (const uint64_t *)r + b, r[c]);
        break;
      case IOPEN: open_iterator(sim, pe, t, &pe->iterators[a], (Operand){b, c}); break;
      case IMORE: if (is_exhausted(pe, &pe->iterators[a])) following = (int)k, cost = (uint64_t)timing->branch; break;
      case IGET: case IPUT: {
        Operation *o = &pe->iterators[op == IGET ? b : a];
        if (t > now && !is_memory(&o->dest)) { later = 1; break; }
        if (op == IGET) r[a] = get_next(sim, pe, t, o, kind);
        else put_next(sim, pe, t, o, r[b], kind);
        cost = (uint64_t)(op == IGET ? timing->load : timing->store);
        break;
      }
      case TSC: r[a] = (int64_t)(t - pe->counter_zero); cost = (uint64_t)timing->timestamp; break;
      case CFGRD: {
        r[a] = r[b] == 0xFFF0 ? pe->x : r[b] == 0xFFF1 ? pe->y : 0;
        cost = (uint64_t)timing->config;
        break;
      }
      case CFGWR: fault(sim, pe, t, FAULT_CONFIG, r[a], 0, 0); return;
      case SYS:
        if (t > now) { later = 1; break; }
        system_call(sim, pe, t, c, &r[a], &r[b]);
        go = 0; /* it may have ended the run */
        cost = (uint64_t)timing->config;
        break;
      case ASSERT: if (!r[a]) { fault(sim, pe, t, FAULT_ASSERTION, k, 0, 0); return; } break;
      case RAND16: r[a] = random16(pe); break;
      case TSCST:
        for (int i = 0; i < 3; i++) write_memory(sim, pe, t, r[a] + 2 * i, 2, (t - pe->counter_zero) >> 16 * i);
        cost = (uint64_t)timing->timestamp;
        break;
      case DSRPRE: cost = (uint64_t)(a * timing->dsd_load); break;
    }
    if (later) break;
    note_issue(sim, t);
    sim->instructions++;
    pe->busy += t != pe->counted;
    pe->counted = t;
    pe->pc = following;
    t += cost;
    if (pe->failed) break;
    if (t == now ? go && !can_issue(sim, pe, now) : t >= until) break;
  }
  pe->ready = t;
}

/* ---- one step of a core ------------------------------------------------------------------------------------------ */

static inline int may_run_ahead(const Sim *sim, const Pe *pe) {
  if (pe->threads_mask || pe->watch) return 0;
  if (sim->mode == RUN_IDLE) return 1;
  if (sim->mode != RUN_COMMANDS || pe->cmd_done) return 0;
  int x = pe->x, y = pe->y;
  return x >= sim->x0 && x < sim->x1 && y >= sim->y0 && y < sim->y1;
}

static int main_ready(Sim *sim, Pe *pe, uint64_t now, int *picked) {
  Obstacle why;
  if (pe->ready > now) return 0;
  if (pe->has_sync) return !is_blocked(sim, pe, now, pe->sync, &why);
  if (pe->running) return can_issue(sim, pe, now);
  return (*picked = pick(sim, pe, now)) != PICK_NONE;
}

static void main_step(Sim *sim, Pe *pe, uint64_t now, int picked) {
  uint64_t until = may_run_ahead(sim, pe) ? sim->horizon : now;
  if (pe->has_sync) {
    if (pe->sync->is_local) {
      pe->ready = run_local(sim, pe, now, until > now ? until : now + 1);
    } else {
      pe->ready = now + (uint64_t)step_operation(sim, pe, now, pe->sync);
      pe->busy++;
      if (is_done(pe->sync)) pe->has_sync = 0;
    }
  } else if (pe->running) run_main(sim, pe, now, until);
  else {
    pe->busy++;
    start_task(sim, pe, now, picked);
  }
}

static void thread_step(Sim *sim, Pe *pe, uint64_t now, int number) {
  Operation *o = pe->threads[number];
  pe->next_issue[number] = now + (uint64_t)step_operation(sim, pe, now, o);
  pe->busy++;
  if (is_done(o)) {
    pe->threads_mask &= (uint8_t)~(1u << number);
    pe->acting = o->pc;
    complete(sim, pe, now, &o->completion);
    pe->acting = -1;
  }
}

/* The first cycle after `now` at which, without anything from outside, this core might issue. */
static uint64_t next_time(const Pe *pe, uint64_t now) {
  uint64_t soonest = NEVER;
  int main = pe->has_sync || pe->running || pe->activated || pe->launches || pe->arrived;
  if (main && pe->ready > now) soonest = pe->ready;
  for (uint32_t left = pe->threads_mask; left; left &= left - 1) {
    uint64_t at = pe->next_issue[__builtin_ctz(left)];
    if (at > now && at < soonest) soonest = at;
  }
  for (uint32_t left = pe->arrived; left; left &= left - 1) {
    const Color *color = pe->colors[__builtin_ctz(left)];
    for (int i = 0; i < color->input_len; i++) { /* a step may need more than the head */
      uint64_t at = color->input[(color->input_head + i) & (CORE_RING - 1)].ready;
      if (at <= now) continue;
      if (at < soonest) soonest = at;
      break;
    }
  }
  return soonest;
}

static inline uint64_t after_issue(const Pe *pe, uint64_t now) {
  if (pe->failed) return NEVER;
  if (pe->threads_mask) return now + 1;
  if (pe->has_sync || pe->running || pe->activated || pe->launches || pe->arrived)
    return pe->ready > now ? pe->ready : now + 1;
  return NEVER;
}

/* The same as step_core for a PE that is in the middle of a synchronous operation and has no other thread. */
static inline int step_sync(Sim *sim, Pe *pe) {
  uint64_t now = sim->now, *next = &sim->core_next[pe->number];
  Operation *o = pe->sync;
  Obstacle why;
  if (pe->ready > now || is_blocked(sim, pe, now, o, &why)) return *next = next_time(pe, now), 0;
  pe->main_last = 1;
  pe->ready = now + (uint64_t)step_operation(sim, pe, now, o);
  pe->busy++;
  if (is_done(o)) pe->has_sync = 0;
  return *next = after_issue(pe, now), 1;
}

/* One issue of one thread, if any can; whether one did. */
static int step_core(Sim *sim, Pe *pe) {
  uint64_t now = sim->now;
  if (pe->failed) { sim->core_next[pe->number] = NEVER; return 0; }
  if (pe->has_sync && !pe->threads_mask && !pe->sync->is_local && !pe->watch) return step_sync(sim, pe);
  int picked = PICK_NONE, main = main_ready(sim, pe, now, &picked);
  if (pe->watch) watch_before(sim, pe, now, main);
  if (!pe->threads_mask) {
    if (main) {
      pe->main_last = 1;
      main_step(sim, pe, now, picked);
    }
  } else {
    take_turn(pe);
    uint32_t classes[5] = {0};
    if (main) classes[pe->main_class] = 1u << MAIN;
    Obstacle why;
    for (uint32_t left = pe->threads_mask & (uint32_t)~pe->blocked_threads; left; left &= left - 1) {
      int number = __builtin_ctz(left);
      if (pe->next_issue[number] > now || is_blocked(sim, pe, now, pe->threads[number], &why)) continue;
      classes[4 - 2 * pe->threads[number]->priority] |= 1u << number;
    }
    int level = 0;
    while (level < 4 && !classes[level]) level++;
    uint32_t ready = classes[level];
    main = ready != 0;
    if (ready) {
      uint32_t turned = ready >> pe->turn[level] | ready << (9 - pe->turn[level]);
      int chosen = (__builtin_ctz(turned) + pe->turn[level]) % 9;
      pe->turn[level] = (uint8_t)((chosen + 1) % 9);
      if (chosen == MAIN) main_step(sim, pe, now, picked);
      else thread_step(sim, pe, now, chosen);
    }
  }
  if (pe->watch && main) watch_after(sim, pe, now);
  sim->core_next[pe->number] = main || pe->failed ? after_issue(pe, now) : next_time(pe, now);
  return main || pe->failed;
}

#endif
