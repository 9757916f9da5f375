/* Routers: decide on what was there before, then move. */
#ifndef ROUTER_H
#define ROUTER_H

#include "state.h"

static const int OPPOSITE[4] = {SOUTH, NORTH, WEST, EAST};

static inline Pe *neighbour(Sim *sim, Pe *pe, int port) {
  int x = pe->x, y = pe->y;
  switch (port) {
    case NORTH: return y > 0 ? pe - sim->width : NULL;
    case SOUTH: return y < sim->height - 1 ? pe + sim->width : NULL;
    case EAST: return x < sim->width - 1 ? pe + 1 : NULL;
    default: return x > 0 ? pe - 1 : NULL;
  }
}

/* Whether the copy for the ramp is delivered, filter aside. */
static inline int to_core(const Pe *pe, const Wavelet *w) {
  if (!w->control) return 1;
  int has_task = pe->program && (pe->program->control_mask >> NO_ENTRY_POINT & 1);
  return !(w->data >> 24 & 1) && ((w->data >> 16 & 63) != NO_ENTRY_POINT || has_task);
}

static int passes(const Color *color, const Wavelet *w) {
  const Route *r = color->route;
  int64_t counter = color->counter;
  if (r->filter == NO_FILTER) return 1;
  if (r->filter == FILTER_RANGE) return w->control || ((int64_t)(w->data >> 16) >= r->min_idx && (int64_t)(w->data >> 16) <= r->max_idx);
  int counted = w->control ? r->count_control : r->count_data;
  if (!counted && !(w->control && r->filter_control)) return 1;
  return r->filter == FILTER_SPARSE_COUNTER ? !(r->max_counter < counter && counter <= r->limit2)
                                            : counter <= r->max_counter;
}

static uint32_t input_depth(const Sim *sim, Pe *pe, Color *color) {
  if (!color->depth) {
    color->depth = 2;
    int queue = 0;
    while (queue < 8 && pe->iq_color[queue] != color->color) queue++;
    if (queue < 8) color->depth = (uint8_t)sim->iq_depth[queue];
    else if (pe->program && pe->program->iq_of_color[color->color] != NO_COLOR)
      color->depth = (uint8_t)sim->iq_depth[pe->program->iq_of_color[color->color]];
  }
  return color->depth;
}

static inline int swapped(const Color *color, int out) {
  return color->color ^ (color->route->swap >> (out == EAST || out == WEST ? 0 : 1) & 1);
}

static int has_room(Sim *sim, Pe *pe, Color *color, const Wavelet *w, uint32_t outs) {
  for (; outs; outs &= outs - 1) {
    int out = __builtin_ctz(outs);
    if (out == HOST) continue;
    if (out == RAMP) {
      if (to_core(pe, w) && passes(color, w) && color->input.len >= input_depth(sim, pe, color)) return 0;
      continue;
    }
    Pe *other = neighbour(sim, pe, out);
    if (!other) { fault_at(sim, pe, sim->now, FAULT_LEAVES, color->color, out, 0, -1); return 0; }
    const Color *there = other->colors[swapped(color, out)];
    if (there && there->queues[OPPOSITE[out]].len >= (uint32_t)sim->router_depth) return 0;
  }
  return 1;
}

/* Colors with a head that may be taken now, and from which ports; *next: when another head comes to be so. */
static uint32_t ready_colors(Sim *sim, Pe *pe, uint8_t *ports, uint64_t *next) {
  uint32_t found = 0;
  for (uint32_t left = pe->queued & pe->alert; left; left &= left - 1) {
    int number = __builtin_ctz(left), waits = 0;
    const Color *color = pe->colors[number];
    ports[number] = 0;
    for (uint32_t at = color->occupied; at; at &= at - 1) {
      int port = __builtin_ctz(at);
      uint64_t ready = head_of(&color->queues[port])->ready;
      if (ready <= sim->now) ports[number] |= (uint8_t)(1u << port);
      else {
        waits = 1;
        if (ready < *next) *next = ready;
      }
    }
    if (!waits) pe->alert &= ~((uint32_t)1 << number);
    if (ports[number]) found |= (uint32_t)1 << number;
  }
  return found;
}

static inline uint32_t turn_colors(uint32_t colors, int from) {
  return (colors >> from | colors << (NUM_COLORS - from)) & 0xFFFFFF;
}

/* Notes this router's moves. The first cycle after this at which, without news, it might move something. */
static uint64_t decide(Sim *sim, Pe *pe) {
  uint8_t ports[NUM_COLORS];
  uint64_t next = NEVER;
  uint32_t colors = ready_colors(sim, pe, ports, &next), taken = 0, lost = 0, by_port[NUM_PORTS] = {0};
  if (!colors) return next;
  for (uint32_t left = colors; left; left &= left - 1) {
    int number = __builtin_ctz(left);
    const Color *color = pe->colors[number];
    if (color->frozen) continue;
    if (!color->route || !(color->valid >> color->position & 1)) {
      lost |= (uint32_t)1 << number;
      by_port[0] |= (uint32_t)1 << number;
      continue;
    }
    uint32_t tx = color->tx[color->position];
    if (tx) by_port[__builtin_ctz(tx)] |= (uint32_t)1 << number;
  }
  for (int port = 0; port < NUM_PORTS; port++) {
    if (!by_port[port]) continue;
    int from = sim->turn + port;
    if (from >= NUM_COLORS) from -= NUM_COLORS;
    for (uint32_t left = turn_colors(by_port[port], from); left; left &= left - 1) {
      int number = __builtin_ctz(left) + from;
      if (number >= NUM_COLORS) number -= NUM_COLORS;
      Color *color = pe->colors[number];
      if (lost >> number & 1) { fault_at(sim, pe, sim->now, FAULT_NO_ROUTE, number, 0, 0, -1); return NEVER; }
      uint32_t accepted = ports[number] & color->rx[color->position], outs = color->tx[color->position];
      if (!accepted) continue;
      if (accepted & (accepted - 1)) { fault_at(sim, pe, sim->now, FAULT_COLLISION, number, 0, 0, -1); return NEVER; }
      if (outs & taken) {
        pe->alert |= (uint32_t)1 << number;
        continue;
      }
      int in = __builtin_ctz(accepted);
      if (!has_room(sim, pe, color, head_of(&color->queues[in]), outs)) continue;
      taken |= outs;
      pe->alert |= (uint32_t)1 << number;
      if (sim->num_moves == sim->moves_capacity) {
        sim->moves_capacity = sim->moves_capacity ? sim->moves_capacity * 2 : 1024;
        Move *moves = realloc(sim->moves, (size_t)sim->moves_capacity * sizeof(Move));
        if (!moves) abort();
        sim->moves = moves;
      }
      sim->moves[sim->num_moves++] = (Move){pe->number, in, color, outs};
      next = sim->now + 1;
    }
  }
  return next;
}

/* ---- moves ------------------------------------------------------------------------------------------------------- */

/* Where SWITCH_ADV goes from here. */
static int next_position(const Color *color) {
  for (int at = color->position + 1; at < color->positions; at++)
    if (color->valid >> at & 1) return at;
  return color->ring ? 0 : color->position;
}

static uint32_t popped(const Color *color, uint32_t data, int command) {
  int how = color->route->pop, advances = command == 1 && next_position(color) != color->position;
  int drop = how == ALWAYS_POP || ((how == POP_ON_ADVANCE || how == POP_ON_ADVANCE_NOP) && advances) ||
             (how == POP_ON_ADVANCE_NOP && command == 0);
  if (!drop) return data;
  uint32_t kept = data, bits = 0;
  for (int i = 0; i < 24; i++) {
    bits |= (data >> (22 + i) % 30 & 1) << i;
    kept &= ~((uint32_t)1 << (22 + i) % 30);
  }
  bits >>= 3;
  for (int i = 0; i < 24; i++) kept |= (bits >> i & 1) << (22 + i) % 30;
  return kept;
}

static void deliver(Sim *sim, Pe *pe, Color *color, const Wavelet *w) {
  const Route *r = color->route;
  if (!to_core(pe, w)) return;
  int arrives = passes(color, w);
  if (r->filter != NO_FILTER && r->filter != FILTER_RANGE && (w->control ? r->count_control : r->count_data))
    color->counter = (int64_t)color->counter >= r->limit1 ? 0 : color->counter + 1;
  if (!arrives) return;
  Wavelet made = *w;
  made.ready = sim->now + (uint64_t)sim->timing.ramp_in;
  made.advance = 0;
  push(sim, &color->input, made);
  pe->arrived |= (uint32_t)1 << color->color;
  if (pe->program) wake_core(sim, pe, made.ready);
}

static void enter(Sim *sim, Pe *pe, Color *color, int port, Wavelet w) {
  push(sim, &color->queues[port], w);
  color->occupied |= (uint8_t)(1u << port);
  pe->queued |= (uint32_t)1 << color->color;
  news(sim, pe, color->color, w.ready);
}

static void to_host(Sim *sim, Pe *pe, Color *color, const Wavelet *w) {
  if (w->control && w->data >> 24 & 1) return; /* "not to the core" is not for the host either */
  push(sim, &color->host_out, *w);
  if (sim->mode != RUN_RECEIVED || sim->color != color->color || (int64_t)color->host_out.len != sim->count) return;
  int x = pe->x, y = pe->y;
  if (x >= sim->x0 && x < sim->x1 && y >= sim->y0 && y < sim->y1) sim->left--;
}

static void act(Sim *sim, Pe *pe, Color *color, int command) {
  if (command == 1) color->position = (uint8_t)next_position(color);
  else if (command == 2) color->position = 0;
  else if (command == 3) {
    color->frozen = color->pending = 1;
    if (pe->program) {
      pe->activated |= (uint32_t)1 << TEARDOWN_TASK;
      wake_core(sim, pe, sim->now + 1);
    }
  }
}

static void move(Sim *sim, const Move *m) {
  Pe *pe = sim->pes + m->pe;
  Color *color = m->color;
  Queue *from = &color->queues[m->port];
  Wavelet w = pop(from);
  if (!from->len) {
    color->occupied &= (uint8_t)~(1u << m->port);
    if (!color->occupied) pe->queued &= ~((uint32_t)1 << color->color);
  }
  if (m->port < RAMP) { /* the neighbour may have waited for room, with this color or the one it swaps with */
    Pe *other = neighbour(sim, pe, m->port);
    other->alert |= (uint32_t)1 << (color->color ^ 1);
    news(sim, other, color->color, sim->now + 1);
  }
  int command = w.control ? (int)(w.data >> 22 & 3) : w.advance;
  uint32_t sent = w.control ? popped(color, w.data, command) : w.data;
  for (uint32_t outs = m->outs; outs; outs &= outs - 1) {
    int out = __builtin_ctz(outs);
    if (out == HOST) to_host(sim, pe, color, &w);
    else if (out == RAMP) deliver(sim, pe, color, &w);
    else {
      Pe *other = neighbour(sim, pe, out);
      int number = swapped(color, out);
      Wavelet copy = {sim->now + (uint64_t)sim->timing.hop, sent, w.control, w.advance, (uint8_t)number, 0};
      enter(sim, other, color_of(sim, other, number), OPPOSITE[out], copy);
      pe->links[out]++;
      sim->hops++;
    }
  }
  act(sim, pe, color, command);
}

/* From output queues into the router: one wavelet a PE. Whether anything happened; *next: when it may go on. */
static int inject(Sim *sim, Pe *pe, uint64_t *next) {
  int happened = 0;
  for (int step = 0; step < 8 && pe->outputs_mask; step++) {
    int number = (int)((sim->now + (uint64_t)step) & 7);
    if (!(pe->outputs_mask >> number & 1)) continue;
    Queue *queue = &pe->outputs[number];
    Wavelet w = *head_of(queue);
    if (w.ready > sim->now + 1) {
      if (w.ready - 1 < *next) *next = w.ready - 1;
      continue;
    }
    Color *color = color_of(sim, pe, w.color);
    if (color->queues[RAMP].len >= (uint32_t)sim->router_depth) continue;
    pop(queue);
    if (!queue->len) pe->outputs_mask &= (uint8_t)~(1u << number);
    w.ready = sim->now + 1;
    enter(sim, pe, color, RAMP, w);
    wake_core(sim, pe, sim->now + 1);
    *next = sim->now + 1;
    happened = 1;
    break;
  }
  for (uint32_t left = pe->flushing; left; left &= left - 1) {
    int number = __builtin_ctz(left);
    if (pe->outputs_mask >> number & 1) continue;
    pe->flushing &= (uint8_t)~(1u << number);
    pe->flushed |= (uint8_t)(1u << number);
    pe->activated |= (uint32_t)1 << TEARDOWN_TASK;
    wake_core(sim, pe, sim->now + 1);
    happened = 1;
  }
  return happened;
}

#endif
