/* Vector operations and iterators: sim/vector.py in C. */
#ifndef VECTOR_H
#define VECTOR_H

#include "state.h"

static inline int is_memory(const Source *s) { return s->dsd == MEM1D || s->dsd == MEM4D; }
static inline int is_input(const Source *s) { return s->dsd == FABIN; }
static inline int is_output(const Source *s) { return s->dsd == FABOUT; }

/* Bytes of an element of dest, src0 and src1. */
static void element_sizes(int op, uint8_t *sizes) {
  int size = 2;
  switch (op) {
    case FADDHS: case FMACHS: case FSCALES: sizes[0] = sizes[1] = 4; sizes[2] = 2; return;
    case FH2S: case XP162FS: sizes[0] = 4; sizes[1] = sizes[2] = 2; return;
    case FS2H: case FS2XP16: sizes[0] = 2; sizes[1] = sizes[2] = 4; return;
    case MOV32: case FABSS: case FADDS: case FSUBS: case FMULS: case FMACS: case FMAXS: case FMOVS: case FNEGS:
    case FNORMS: size = 4;
  }
  sizes[0] = sizes[1] = sizes[2] = (uint8_t)size;
}

/* ---- operands ---------------------------------------------------------------------------------------------------- */

static void from_slots(Source *s, const uint64_t *slots) {
  s->kind = KIND_DSD;
  s->dsd = (slots[0] & 7) < 4 ? (uint8_t)(slots[0] & 7) : MEM1D;
  s->flags = (uint8_t)((slots[0] & 0xF8) | (slots[0] >> 24 & TRANSFORM_BIT));
  s->queue = (uint8_t)(slots[0] >> 8);
  s->color = (uint8_t)(slots[0] >> 16);
  s->base = (uint16_t)(slots[0] >> 32);
  s->extents[0] = (uint16_t)(slots[0] >> 48);
  s->strides[0] = (int16_t)slots[1];
  s->dims = 1;
  if (s->dsd == MEM4D)
    for (int i = 0; i < 3; i++) {
      uint16_t extent = (uint16_t)(slots[2] >> 16 * i);
      if (!extent) continue;
      s->extents[s->dims] = extent;
      s->strides[s->dims++] = (int16_t)(slots[1] >> 16 * (i + 1));
    }
}

static int source_of(Sim *sim, Pe *pe, uint64_t now, Operand operand, Source *s) {
  memset(s, 0, sizeof *s);
  s->dsd = NO_DSD;
  s->color = NO_COLOR;
  s->fifo = s->dsr = -1;
  s->kind = (uint8_t)operand.kind;
  const int64_t *frame = pe->frames + pe->fp;
  switch (operand.kind) {
    case KIND_NONE: return 1;
    case KIND_SCALAR: case KIND_POINTER: s->value = frame[operand.value]; return 1;
    case KIND_FIFO: s->fifo = (int16_t)operand.value; return 1;
    case KIND_DSD: from_slots(s, (const uint64_t *)frame + operand.value); return 1;
    default: {
      int number = pe->program->dsr_of[operand.value >> 8][operand.value & 63];
      if (number == 255 || !pe->dsrs[number].load)
        return fault(sim, pe, now, FAULT_DSR, operand.value >> 8, operand.value & 0xFF, 0);
      from_slots(s, pe->dsrs[number].slots);
      s->load = pe->dsrs[number].load;
      s->dsr = (int16_t)number;
      return 1;
    }
  }
}

static inline int64_t address_of(const Source *s, uint64_t position, int size) {
  int64_t at = s->base;
  if (s->dims == 1) return (at + (int64_t)position * s->strides[0] * size) & 0xFFFF;
  for (int i = 0; i < s->dims; i++) {
    uint64_t extent = s->extents[i] ? s->extents[i] : 1;
    at += (int64_t)(position % extent) * s->strides[i] * size;
    position /= extent;
  }
  return at & 0xFFFF;
}

/* The address of the next element; advance() goes on to the one after. */
static inline int64_t next_address(const Source *s) { return s->at & 0xFFFF; }

static inline void advance(Source *s, int size) {
  int32_t step = s->strides[0] * size;
  s->at += step;
  if (s->dims == 1 || ++s->index[0] < s->extents[0]) return;
  s->at -= s->index[0] * step;
  s->index[0] = 0;
  for (int i = 1; i < s->dims; i++) {
    step = s->strides[i] * size;
    s->at += step;
    if (++s->index[i] < s->extents[i]) return;
    s->at -= s->index[i] * step;
    s->index[i] = 0;
  }
}

static int known_length(const Source *s, uint64_t *length) {
  if (s->kind != KIND_DSD) return 0;
  *length = 1;
  for (int i = 0; i < s->dims; i++) *length *= s->extents[i];
  return 1;
}

static inline int color_in(const Sim *sim, const Pe *pe, const Source *s) {
  if (s->color != NO_COLOR && !sim->is_wse3) return s->color;
  uint8_t own = pe->iq_color[s->queue & 7];
  return own != NO_COLOR ? own : s->color;
}

static inline Color *input_of(Sim *sim, Pe *pe, const Source *s) {
  int color = color_in(sim, pe, s);
  return color < NUM_COLORS ? pe->colors[color] : NULL;
}

/* ---- starting ---------------------------------------------------------------------------------------------------- */

/* Whether the operation runs in a microthread, and which: -1 for the main thread. */
static int thread_of(Sim *sim, Pe *pe, uint64_t now, const Vector *v, Operation *made) {
  Source *sources[] = {&made->dest, &made->src0, &made->src1};
  const DsrLoad *first = NULL, *named = NULL;
  if (!source_of(sim, pe, now, v->dest, &made->dest) || !source_of(sim, pe, now, v->src0, &made->src0) ||
      !source_of(sim, pe, now, v->src1, &made->src1) || !source_of(sim, pe, now, v->scalar, &made->scalar))
    return -2;
  for (int i = 0; i < 3; i++) {
    const DsrLoad *load = sources[i]->load;
    if (!load || !load->is_async) continue;
    if (!first) first = load;
    if (!named && load->microthread >= 0) named = load;
  }
  made->is_async = v->is_async || first;
  made->completion = v->completion;
  made->priority = (uint8_t)v->priority;
  int silent = v->completion.activate < 0 && v->completion.unblock_kind != BLOCK_TASK &&
               v->completion.unblock_kind != BLOCK_MICROTHREAD;
  if (first && (!v->is_async || silent)) made->completion = first->completion;
  if (first && !v->is_async) made->priority = (uint8_t)first->priority;
  int thread = named ? named->microthread : v->microthread;
  if (thread < 0) {
    if (is_output(&made->dest)) thread = made->dest.queue & 7;
    else if (is_input(&made->src0)) thread = made->src0.queue & 7;
    else if (is_input(&made->src1)) thread = made->src1.queue & 7;
    else thread = 7;
  }
  made->thread = (uint8_t)(thread & 7);
  return made->is_async ? made->thread : -1;
}

static int uses_queue(const Source *s) { return is_input(s) || is_output(s) || s->kind == KIND_FIFO; }

/* Whether a wavelet holds two of its elements, of `size` bytes. */
static inline int holds_pairs(const Source *s, int size) {
  return size == 2 && s->flags & PAIR_BIT && (is_input(s) || is_output(s));
}

static int width_of(const Sim *sim, const Operation *o) {
  int width = sim->widths[o->op];
  const Source *sources[] = {&o->dest, &o->src0, &o->src1, &o->scalar};
  if (o->dest.kind == KIND_POINTER) return 1;
  for (int i = 0; i < 4; i++) {
    const Source *s = sources[i];
    int limit = width;
    if (s->kind == KIND_FIFO) return 1;
    if (is_input(s) || is_output(s))
      limit = !holds_pairs(s, o->sizes[i < 3 ? i : 2]) ? 1 : s->flags & QUAD_BIT ? 4 : 2;
    else if (is_memory(s)) {
      int stride = s->strides[0], rest = stride & 7;
      if (stride == 0 || stride == 1 || rest == 2 || rest == 3 || rest == 5 || rest == 6) continue;
      limit = rest == 1 || rest == 7 ? 2 : 1;
    }
    if (limit < width) width = limit;
  }
  return width;
}

/* Between memory, scalars and the fabric, an element a step, nothing addressed by a wavelet's index. */
static int is_plain(const Operation *o) {
  const Source *sources[] = {&o->dest, &o->src0, &o->src1, &o->scalar};
  for (int i = 0; i < 4; i++)
    if (sources[i]->kind == KIND_FIFO || sources[i]->kind == KIND_POINTER ||
        (is_memory(sources[i]) && sources[i]->flags & INDEX_OFFSET_BIT) || sources[i]->flags & TRANSFORM_BIT)
      return 0;
  for (int i = 0; i < 4; i++)
    if (holds_pairs(sources[i], o->sizes[i < 3 ? i : 2])) return 0;
  return o->width == 1 && o->dest.kind != KIND_NONE;
}

/* The length that was set for reading or writing a FIFO, 0: none. */
static uint32_t fifo_length(const Pe *pe, const Operation *o) {
  const Source *sources[] = {&o->src0, &o->src1};
  for (int i = 0; i < 2; i++)
    if (sources[i]->kind == KIND_FIFO && pe->fifos[sources[i]->fifo].read_length)
      return pe->fifos[sources[i]->fifo].read_length;
  return o->dest.kind == KIND_FIFO ? pe->fifos[o->dest.fifo].write_length : 0;
}

static void start_operation(Sim *sim, Pe *pe, uint64_t now, const Vector *v, Operation *o) {
  uint64_t length;
  o->op = (uint8_t)v->op;
  o->pc = pe->pc;
  o->serial = sim->serial++;
  o->index = v->index >= 0 ? (int32_t)(pe->frames[pe->fp + v->index] & 0xFFFF) : -1;
  element_sizes(o->op, o->sizes);
  if (known_length(&o->src0, &length) || known_length(&o->src1, &length) || known_length(&o->dest, &length))
    o->length = length;
  else {
    const Source *fifo = o->src0.kind == KIND_FIFO ? &o->src0 : o->src1.kind == KIND_FIFO ? &o->src1
                         : o->dest.kind == KIND_FIFO ? &o->dest : NULL;
    uint32_t set = fifo ? fifo_length(pe, o) : 0;
    o->length = !fifo ? 1 : set ? set : o->is_async ? ENDLESS : pe->fifos[fifo->fifo].len;
  }
  o->width = (uint8_t)width_of(sim, o);
  o->waits = (uint8_t)((uses_queue(&o->dest) ? WAITS_DEST : 0) | (uses_queue(&o->src0) ? WAITS_SRC0 : 0) |
                       (uses_queue(&o->src1) ? WAITS_SRC1 : 0) | (uses_queue(&o->scalar) ? WAITS_SCALAR : 0));
  o->is_local = !o->waits;
  o->has_on_control = (uint8_t)v->has_on_control;
  o->on_control = v->on_control;
  if (o->has_on_control) o->width = 1;
  o->is_plain = (uint8_t)(!o->has_on_control && is_plain(o));
  if (o->index >= 0) {
    Source *sources[] = {&o->dest, &o->src0, &o->src1};
    for (int i = 0; i < 3; i++)
      if (is_memory(sources[i]) && sources[i]->flags & INDEX_OFFSET_BIT)
        sources[i]->base = (uint16_t)(sources[i]->base + 2 * o->index);
  }
  o->dest.at = o->dest.base, o->src0.at = o->src0.base, o->src1.at = o->src1.base, o->scalar.at = o->scalar.base;
  if (o->dest.kind == KIND_POINTER) {
    int size = o->sizes[0];
    uint64_t mask = size == 4 ? 0xFFFFFFFFu : 0xFFFFu;
    o->has_sum = 1;
    o->sum = (uint32_t)(o->src0.kind == KIND_SCALAR ? (uint64_t)o->src0.value & mask
                        : read_memory(sim, pe, now, o->src0.kind == KIND_POINTER ? o->src0.value : o->dest.value, size));
  }
}

static inline int is_done(const Operation *o) {
  return o->stopped || (o->position >= o->length && o->length != ENDLESS);
}

/* ---- progress ---------------------------------------------------------------------------------------------------- */

typedef struct { int kind, a, b; } Obstacle;

/* Whether a reader, or a writer, of a FIFO has to wait; it is remembered. */
static inline int finds_empty(Pe *pe, int number) {
  Fifo *f = &pe->fifos[number];
  f->was_empty |= !f->len;
  return !f->len;
}

static inline int finds_full(Pe *pe, int number) {
  Fifo *f = &pe->fifos[number];
  int full = f->len >= (uint32_t)pe->program->fifos[number].capacity;
  f->was_full |= (uint8_t)full;
  return full;
}

/* Of the next step. */
static inline int elements_of(const Operation *o) {
  uint64_t left = o->length - o->position;
  return o->length == ENDLESS ? 1 : left < o->width ? (int)left : o->width;
}

static int input_waits(Sim *sim, Pe *pe, uint64_t now, const Operation *o, const Source *s, int size) {
  const Color *color = input_of(sim, pe, s);
  uint64_t end = o->position + (uint64_t)elements_of(o);
  int needed = holds_pairs(s, size) ? (int)((end + 1) / 2 - (o->position + 1) / 2) : 1, found = 0;
  while (color && found < needed && found < color->input_len) {
    const Wavelet *w = color->input + ((color->input_head + found) & (CORE_RING - 1));
    if (w->ready > now || (w->control && !(s->flags & TRANSFORM_BIT))) break;
    found++;
  }
  return found < needed;
}

/* Whether a control wavelet has come that ends the operation. */
static int ends_at(Sim *sim, Pe *pe, uint64_t now, const Operation *o, const Source *s) {
  if (!o->has_on_control || !is_input(s)) return 0;
  const Color *color = input_of(sim, pe, s);
  return color && color->input_len && input_head(color)->ready <= now && input_head(color)->control;
}

static inline int source_waits(Sim *sim, Pe *pe, uint64_t now, const Operation *o, const Source *s, int size,
                               int waits_for_fifo, Obstacle *why) {
  if (is_input(s)) {
    if (o->is_plain) {
      const Color *color = input_of(sim, pe, s);
      const Wavelet *head = color && color->input_len ? input_head(color) : NULL;
      if (head && head->ready <= now && !head->control) return 0;
    } else if (!input_waits(sim, pe, now, o, s, size) || ends_at(sim, pe, now, o, s)) return 0;
    *why = (Obstacle){WAIT_WAVELET, color_in(sim, pe, s), s->queue};
    return 1;
  }
  if (s->kind == KIND_FIFO && waits_for_fifo && finds_empty(pe, s->fifo)) {
    *why = (Obstacle){WAIT_ELEMENT, s->fifo, 0};
    return 1;
  }
  return 0;
}

static inline int dest_waits(Sim *sim, Pe *pe, const Operation *o, const Source *s, int size, int waits_for_fifo,
                             Obstacle *why) {
  if (is_output(s)) {
    int sent = 1, queue = s->queue & 7;
    if (!o->is_plain && holds_pairs(s, size)) {
      uint64_t end = o->position + (uint64_t)elements_of(o);
      sent = (int)(end / 2 - o->position / 2) + (end == o->length && end & 1);
    }
    if (sent && pe->output_len[queue] + sent > sim->oq_depth[queue]) {
      *why = (Obstacle){WAIT_OUTPUT_ROOM, s->queue, 0};
      return 1;
    }
  }
  if (s->kind == KIND_FIFO && waits_for_fifo && finds_full(pe, s->fifo)) {
    *why = (Obstacle){WAIT_FIFO_ROOM, s->fifo, 0};
    return 1;
  }
  return 0;
}

/* Whether a step cannot be made now, and why. */
static inline int is_blocked(Sim *sim, Pe *pe, uint64_t now, const Operation *o, Obstacle *why) {
  if (o->is_local) return 0;
  int async = o->is_async;
  return (o->waits & WAITS_SRC0 && source_waits(sim, pe, now, o, &o->src0, o->sizes[1], async, why)) ||
         (o->waits & WAITS_SRC1 && source_waits(sim, pe, now, o, &o->src1, o->sizes[2], async, why)) ||
         (o->waits & WAITS_SCALAR && source_waits(sim, pe, now, o, &o->scalar, o->sizes[2], async, why)) ||
         (o->waits & WAITS_DEST && dest_waits(sim, pe, o, &o->dest, o->sizes[0], async, why));
}

static uint32_t fifo_pop(Sim *sim, Pe *pe, uint64_t now, int number) {
  Fifo *f = &pe->fifos[number];
  const FifoRow *row = &pe->program->fifos[number];
  if (!f->len) { fault(sim, pe, now, FAULT_ONE_ELEMENT, number, 0, 0); return 0; }
  uint32_t value = f->items[f->head];
  f->head = (f->head + 1) % (uint32_t)row->capacity;
  f->len--;
  if (f->was_full) {
    f->was_full = 0;
    complete(sim, pe, now, &row->on_pop);
  }
  return value;
}

static void fifo_push(Sim *sim, Pe *pe, uint64_t now, int number, uint32_t value) {
  Fifo *f = &pe->fifos[number];
  const FifoRow *row = &pe->program->fifos[number];
  f->items[(f->head + f->len++) % (uint32_t)row->capacity] = value;
  if (!f->was_empty) return;
  f->was_empty = 0;
  complete(sim, pe, now, &row->on_push);
}

static inline uint32_t take_input(Sim *sim, Pe *pe, uint64_t now, const Source *s) {
  Color *color = input_of(sim, pe, s);
  if (!color || !color->input_len) { fault(sim, pe, now, FAULT_ONE_WAVELET, color_in(sim, pe, s), 0, 0); return 0; }
  uint32_t data = input_pop(pe, color);
  if (pe->queued >> color->color & 1) news(sim, pe, color->color, sim->now);
  return data;
}

/* The wavelet with element i; its half, if it holds two. */
static inline uint32_t take_half(Sim *sim, Pe *pe, uint64_t now, Source *s, uint64_t i, int size) {
  int pairs = holds_pairs(s, size);
  if (!(i & 1) || !pairs) {
    const Color *color = s->flags & TRANSFORM_BIT ? input_of(sim, pe, s) : NULL;
    int control = color && color->input_len && input_head(color)->control;
    s->held = take_input(sim, pe, now, s) | (control ? CONTROL_MARK : 0);
  }
  if (!pairs) return s->held;
  return s->held >> 16 * (i & 1) & 0xFFFF;
}

/* The element at o->position. */
static void send(Sim *sim, Pe *pe, uint64_t now, const Operation *o, Source *s, uint32_t result, int size) {
  int is_last = o->position + 1 == o->length && o->length != ENDLESS;
  if (holds_pairs(s, size)) {
    s->held = o->position & 1 ? s->held | result << 16 : result & 0xFFFF;
    if (!(o->position & 1) && !is_last) return;
    result = s->held;
    size = 4;
  }
  int queue = s->queue & 7, color = s->color != NO_COLOR ? s->color : pe->oq_color[queue];
  if (color >= NUM_COLORS) { fault(sim, pe, now, FAULT_NO_COLOR, s->queue, 0, 0); return; }
  uint32_t data = size == 4 ? result : size == 2 ? result & 0xFFFF : result & 0xFF;
  if (size == 2 && o->index >= 0) {
    uint32_t index = (uint32_t)o->index + (s->flags & INDEX_OFFSET_BIT ? (uint32_t)o->position : 0);
    data |= (index & 0xFFFF) << 16;
  }
  int control = !!(s->flags & CONTROL_BIT);
  if (s->flags & TRANSFORM_BIT && data >> 30 == 3) {
    control = 1;
    data = (data & ~CONTROL_MARK) ^ pe->transform;
  }
  uint64_t ready = now + (uint64_t)sim->timing.ramp_out;
  int advance = is_last && s->flags & ADVANCE_SWITCH_BIT;
  output_push(sim, pe, queue, (Wavelet){ready, data, (uint8_t)control, (uint8_t)advance, (uint8_t)color, 0});
  wake_router(sim, pe, ready - 1);
}

static inline uint32_t cut(uint64_t value, int size) {
  return (uint32_t)(size == 4 ? value & 0xFFFFFFFFu : value & 0xFFFF);
}

typedef struct { Source *fabric; uint32_t word; } Arrival;

static inline uint32_t read_source(Sim *sim, Pe *pe, uint64_t now, Source *s, uint64_t i, int size, const Arrival *in) {
  switch (s->kind) {
    case KIND_NONE: return 0;
    case KIND_SCALAR: return cut((uint64_t)s->value, size);
    case KIND_POINTER: return (uint32_t)read_memory(sim, pe, now, s->value, size);
    case KIND_FIFO: return fifo_pop(sim, pe, now, s->fifo);
  }
  if (s == in->fabric) return cut(in->word, size);
  if (is_input(s)) return cut(take_half(sim, pe, now, s, i, size), size);
  int64_t address = in->fabric && s->flags & INDEX_OFFSET_BIT ? (s->base + 2 * (int64_t)(in->word >> 16)) & 0xFFFF
                                                              : next_address(s);
  advance(s, size);
  return (uint32_t)read_memory(sim, pe, now, address, size);
}

static inline int is_mac(int op) { return op == FMACH || op == FMACHS || op == FMACS; }

/* A FIFO whose set length an operation has not gone through keeps what is left. */
static void keep_rest(Pe *pe, const Operation *o, uint64_t position) {
  const Source *sources[] = {&o->src0, &o->src1, &o->dest};
  for (int i = 0; i < 3; i++) {
    if (sources[i]->kind != KIND_FIFO) continue;
    Fifo *fifo = &pe->fifos[sources[i]->fifo];
    uint16_t *length = i < 2 ? &fifo->read_length : &fifo->write_length;
    *length = (uint16_t)(*length > position ? *length - position : 0);
  }
}

/* A synchronous operation ends where it would wait for a FIFO. */
static int fifo_stops(Pe *pe, const Operation *o) {
  if (o->is_async) return 0;
  return (o->src0.kind == KIND_FIFO && finds_empty(pe, o->src0.fifo)) ||
         (o->src1.kind == KIND_FIFO && finds_empty(pe, o->src1.fifo)) ||
         (o->dest.kind == KIND_FIFO && finds_full(pe, o->dest.fifo));
}

static inline int conflicts(const Operation *o) {
  if (!is_memory(&o->src0) || !is_memory(&o->src1)) return 0;
  int64_t x = next_address(&o->src0), y = next_address(&o->src1);
  return x != y && (x >> 1 & 3) == (y >> 1 & 3);
}

static void finish(Sim *sim, Pe *pe, uint64_t now, Operation *o) {
  if (o->has_sum && !o->stopped) write_memory(sim, pe, now, o->dest.value, o->sizes[0], o->sum);
  const Source *sources[] = {&o->dest, &o->src0, &o->src1};
  for (int i = 0; i < 3; i++) {
    const Source *s = sources[i];
    if (!s->load || !s->load->save_address || !is_memory(s)) continue;
    uint64_t at = (uint64_t)address_of(s, o->position, o->sizes[i]);
    uint64_t *first = &pe->dsrs[s->dsr].slots[0];
    *first = (*first & ~((uint64_t)0xFFFF << 32)) | at << 32;
  }
}

static inline uint32_t read_plain(Sim *sim, Pe *pe, uint64_t now, Source *s, int size) {
  if (s->dsd == NO_DSD) return cut((uint64_t)s->value, size); /* 0 if there is none */
  if (is_input(s)) return cut(take_input(sim, pe, now, s), size);
  int64_t address = next_address(s);
  advance(s, size);
  return (uint32_t)read_memory(sim, pe, now, address, size);
}

static inline uint64_t when_sent(const Sim *sim, uint64_t now, int op) {
  int moves = op == MOV16 || op == MOV32 || op == FMOVH || op == FMOVS;
  return moves ? now : now + (uint64_t)sim->timing.float_latency;
}

/* A step of a plain operation, which most are; its cycles. */
static int step_plain(Sim *sim, Pe *pe, uint64_t now, Operation *o) {
  int cost = conflicts(o) ? 2 : 1;
  pe->acting = o->pc;
  sim->elements++;
  uint32_t a = read_plain(sim, pe, now, &o->src0, o->sizes[1]);
  uint32_t b = read_plain(sim, pe, now, &o->src1, o->sizes[2]);
  uint32_t c = read_plain(sim, pe, now, &o->scalar, o->sizes[2]);
  uint32_t result = result_of(o->op, a, b, c, &o->carry);
  if (is_output(&o->dest)) send(sim, pe, when_sent(sim, now, o->op), o, &o->dest, result, o->sizes[0]);
  else {
    write_memory(sim, pe, now, next_address(&o->dest), o->sizes[0], result);
    advance(&o->dest, o->sizes[0]);
  }
  o->position++;
  if (is_done(o)) finish(sim, pe, now, o);
  pe->acting = -1;
  return cost;
}

static int ended_by_control(Sim *sim, Pe *pe, uint64_t now, Operation *o) {
  const Source *s = ends_at(sim, pe, now, o, &o->src0) ? &o->src0 : ends_at(sim, pe, now, o, &o->src1) ? &o->src1 : NULL;
  if (!s) return 0;
  pe->acting = o->pc;
  take_input(sim, pe, now, s);
  o->length = o->position;
  o->completion = o->on_control;
  finish(sim, pe, now, o);
  pe->acting = -1;
  return 1;
}

/* One step; its cycles. */
static inline int step_operation(Sim *sim, Pe *pe, uint64_t now, Operation *o) {
  if (o->is_plain) return step_plain(sim, pe, now, o);
  if (o->has_on_control && ended_by_control(sim, pe, now, o)) return 1;
  uint32_t results[MAX_WIDTH];
  uint64_t first = o->position;
  int elements = elements_of(o), made = 0;
  int cost = conflicts(o) ? 2 : 1, written = 0;
  pe->acting = o->pc;
  sim->elements += elements;
  for (; made < elements; made++) {
    Arrival in = {0};
    uint64_t i = first + (uint64_t)made;
    if (!o->is_local) {
      if (fifo_stops(pe, o)) {
        o->stopped = pe->stopped = 1;
        keep_rest(pe, o, i);
        break;
      }
      in.fabric = is_input(&o->src0) ? &o->src0 : is_input(&o->src1) ? &o->src1 : NULL;
      if (in.fabric) in.word = take_half(sim, pe, now, in.fabric, i, o->sizes[in.fabric == &o->src0 ? 1 : 2]);
    }
    if (o->has_sum) {
      uint32_t b = read_source(sim, pe, now, &o->src1, i, o->sizes[2], &in);
      uint32_t c = read_source(sim, pe, now, &o->scalar, i, o->sizes[2], &in);
      if (is_memory(&o->src0) && (is_mac(o->op) || o->src1.kind != KIND_NONE)) advance(&o->src0, o->sizes[1]);
      if (is_mac(o->op)) o->sum = result_of(o->op, o->sum, b, c, &o->carry);
      else if (o->src1.kind != KIND_NONE) o->sum = result_of(o->op, o->sum, b, 0, &o->carry);
      else o->sum = result_of(o->op, read_source(sim, pe, now, &o->src0, i, o->sizes[1], &in), 0, 0, &o->carry);
      continue;
    }
    uint32_t a = read_source(sim, pe, now, &o->src0, i, o->sizes[1], &in);
    uint32_t b = read_source(sim, pe, now, &o->src1, i, o->sizes[2], &in);
    uint32_t c = read_source(sim, pe, now, &o->scalar, i, o->sizes[2], &in);
    results[made] = result_of(o->op, a, b, c, &o->carry);
    if (in.fabric && is_memory(&o->dest) && o->dest.flags & INDEX_OFFSET_BIT) {
      write_memory(sim, pe, now, (o->dest.base + 2 * (int64_t)(in.word >> 16)) & 0xFFFF, o->sizes[0], results[made]);
      written = 1;
    }
  }
  if (!o->has_sum && !written && o->dest.kind != KIND_NONE) {
    for (int k = 0; k < made; k++) {
      o->position = first + (uint64_t)k;
      if (o->dest.kind == KIND_FIFO) fifo_push(sim, pe, now, o->dest.fifo, results[k]);
      else if (is_output(&o->dest))
        send(sim, pe, when_sent(sim, now, o->op), o, &o->dest, results[k], o->sizes[0]);
      else {
        write_memory(sim, pe, now, next_address(&o->dest), o->sizes[0], results[k]);
        advance(&o->dest, o->sizes[0]);
      }
    }
  }
  o->position = first + (uint64_t)elements;
  if (is_done(o)) finish(sim, pe, now, o);
  pe->acting = -1;
  return cost;
}

/* ---- iterators: their operand is `dest` ---------------------------------------------------------------------------- */

static void open_iterator(Sim *sim, Pe *pe, uint64_t now, Operation *o, Operand operand) {
  memset(o, 0, sizeof *o);
  o->op = ITERATOR;
  o->width = 1;
  o->index = -1;
  o->src0.dsd = o->src1.dsd = o->scalar.dsd = NO_DSD;
  if (!source_of(sim, pe, now, operand, &o->dest)) return;
  o->length = ENDLESS;
  uint64_t length;
  if (known_length(&o->dest, &length) && length) o->length = length;
}

static int is_exhausted(const Pe *pe, const Operation *o) {
  if (o->dest.kind == KIND_FIFO) return !pe->fifos[o->dest.fifo].len;
  return o->length != ENDLESS && o->position >= o->length;
}

static int64_t get_next(Sim *sim, Pe *pe, uint64_t now, Operation *o, int kind) {
  int size = size_of(kind);
  uint64_t value;
  if (o->dest.kind == KIND_FIFO) value = fifo_pop(sim, pe, now, o->dest.fifo);
  else if (is_input(&o->dest)) value = take_half(sim, pe, now, &o->dest, o->position, size);
  else value = read_memory(sim, pe, now, address_of(&o->dest, o->position, size), size);
  o->position++;
  if (size < 8) value &= ((uint64_t)1 << 8 * size) - 1;
  return kind < T_F16 ? wrap((int64_t)value, kind) : (int64_t)value;
}

static void put_next(Sim *sim, Pe *pe, uint64_t now, Operation *o, int64_t value, int kind) {
  int size = size_of(kind);
  if (o->dest.kind == KIND_FIFO)
    fifo_push(sim, pe, now, o->dest.fifo, (uint32_t)(size < 4 ? (uint64_t)value & ((1u << 8 * size) - 1) : (uint64_t)value));
  else if (is_output(&o->dest)) send(sim, pe, now, o, &o->dest, (uint32_t)value, size);
  else write_memory(sim, pe, now, address_of(&o->dest, o->position, size), size, (uint64_t)value);
  o->position++;
}

#endif
