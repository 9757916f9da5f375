/* Routers: decide on what was there before, then move. */
#ifndef ROUTER_H
#define ROUTER_H

#include "state.h"

static const int OPPOSITE[4] = {SOUTH, NORTH, WEST, EAST};

static inline Pe *neighbour(const Sim *sim, Pe *pe, int port) { return (Pe *)((char *)pe + sim->step[port]); }

/* Whether the copy for the ramp is delivered, filter aside. */
static inline int to_core(const Pe *pe, const Wavelet *w) {
  if (!w->control) return 1;
  int has_task = pe->program && (pe->program->control_mask >> NO_ENTRY_POINT & 1);
  return !(w->data >> 24 & 1) && ((w->data >> 16 & 63) != NO_ENTRY_POINT || has_task);
}

static void count_wavelet(Color *color) {
  if ((int64_t)color->counter < limit_of(color)) {
    color->counter++;
    return;
  }
  color->counter = 0;
  if (color->route->filter == FILTER_SPARSE_COUNTER && color->laps < 2) color->laps++;
}

static int passes_filter(const Color *color, const Wavelet *w) {
  const Route *r = color->route;
  if (r->filter == FILTER_RANGE)
    return w->control || ((int64_t)(w->data >> 16) >= r->min_idx && (int64_t)(w->data >> 16) <= r->max_idx);
  if (w->control && r->filter_control && r->filter == FILTER_COUNTER) return (int64_t)color->counter == r->max_counter;
  if (r->filter == FILTER_SPARSE_COUNTER && !limit_of(color)) return 1;
  return (w->control && !r->count_control) || (int64_t)color->counter <= r->max_counter;
}

static inline int passes(const Color *color, const Wavelet *w) {
  return color->route->filter == NO_FILTER || passes_filter(color, w);
}

static void find_input_depth(const Sim *sim, const Pe *pe, Color *color) {
  color->depth = 2;
  int queue = 0;
  while (queue < 8 && pe->iq_color[queue] != color->color) queue++;
  if (queue < 8) color->depth = (uint8_t)sim->iq_depth[queue];
  else if (pe->program && pe->program->iq_of_color[color->color] != NO_COLOR)
    color->depth = (uint8_t)sim->iq_depth[pe->program->iq_of_color[color->color]];
}

/* Whether the queue to the core has room, or the wavelet is not for it. */
static inline int ramp_has_room(const Sim *sim, const Pe *pe, Color *color, const Wavelet *w) {
  if (!color->depth) find_input_depth(sim, pe, color);
  return color->input_len < color->depth || !to_core(pe, w) || !passes(color, w);
}

/* The colors, as bits, that take what comes in on `color` at a port: with color swap the other of the pair, or both. */
static uint32_t swap_receivers(const Pe *pe, int color, int port) {
  uint32_t found = 0;
  for (int i = 0; i < 2; i++) {
    int own = color ^ i;
    const Color *state = pe->colors[own];
    int swap = state ? state->swap : 0;
    int swaps = port == RAMP ? swap == 3 : swap >> (port == EAST || port == WEST ? 0 : 1) & 1;
    if ((own ^ swaps) == color) found |= (uint32_t)1 << own;
  }
  return found ? found : (uint32_t)1 << color;
}

static inline int port_has_room(const Sim *sim, const Pe *pe, int color, int port) {
  const Color *state = pe->colors[color];
  if (!(pe->outside & HAS_SWAPS)) return !state || state->len[port] < sim->router_depth;
  for (uint32_t left = swap_receivers(pe, color, port); left; left &= left - 1) {
    state = pe->colors[__builtin_ctz(left)];
    if (state && state->len[port] >= sim->router_depth) return 0;
  }
  return 1;
}

/* Whether the neighbour's queue has room; there is a neighbour. */
static inline int link_has_room(const Sim *sim, Pe *pe, const Color *color, int out) {
  return port_has_room(sim, neighbour(sim, pe, out), color->color, OPPOSITE[out]);
}

static int has_room(Sim *sim, Pe *pe, Color *color, const Wavelet *w, uint32_t outs) {
  for (; outs; outs &= outs - 1) {
    int out = __builtin_ctz(outs);
    if (out == HOST) continue;
    if (out != RAMP && pe->outside >> out & 1) continue; /* what leaves the rectangle is gone */
    if (!(out == RAMP ? ramp_has_room(sim, pe, color, w) : link_has_room(sim, pe, color, out))) return 0;
  }
  return 1;
}

/* Ports of a color whose head may be taken now; *next: when that of another comes to be so, if sooner. */
static inline uint32_t ready_ports(const Sim *sim, Pe *pe, const Color *color, uint64_t *next) {
  uint32_t found = 0;
  int waits = 0;
  for (uint32_t at = color->occupied; at; at &= at - 1) {
    int port = __builtin_ctz(at);
    uint64_t ready = port_head(color, port)->ready;
    if (ready <= sim->now) found |= 1u << port;
    else {
      waits = 1;
      if (ready < *next) *next = ready;
    }
  }
  if (!waits) pe->alert &= ~((uint32_t)1 << color->color);
  return found;
}

static inline uint32_t turn_colors(uint32_t colors, int from) {
  return (colors >> from | colors << (NUM_COLORS - from)) & 0xFFFFFF;
}

static void note_move(Sim *sim, Pe *pe, int in, Color *color, uint32_t outs) {
  if (sim->num_moves == sim->moves_capacity) {
    sim->moves_capacity = sim->moves_capacity ? sim->moves_capacity * 2 : 1024;
    Move *moves = realloc(sim->moves, (size_t)sim->moves_capacity * sizeof(Move));
    if (!moves) abort();
    sim->moves = moves;
  }
  sim->moves[sim->num_moves++] = (Move){pe, color, in, outs};
  pe->alert |= (uint32_t)1 << color->color;
}

/* The moves of colors that want the same output, in the order of their turns. */
static uint64_t decide_by_turns(Sim *sim, Pe *pe, const uint8_t *ports, uint32_t colors, uint64_t next) {
  uint32_t taken = 0, lost = 0, by_port[NUM_PORTS] = {0};
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
      if (!has_room(sim, pe, color, port_head(color, in), outs)) continue;
      taken |= outs;
      note_move(sim, pe, in, color, outs);
      next = sim->now + 1;
    }
  }
  return next;
}

/* Notes this router's moves. The first cycle after this at which, without news, it might move something. Colors with
   different outputs do not meet, so that their turns do not matter; the others are decided together. */
static uint64_t decide(Sim *sim, Pe *pe) {
  uint8_t ports[NUM_COLORS];
  uint64_t next = IDLE;
  uint32_t colors = 0, wanted = pe->outside & ~HAS_SWAPS, meet = 0;
  int32_t before = sim->num_moves;
  for (uint32_t left = pe->queued & pe->alert; left; left &= left - 1) {
    int number = __builtin_ctz(left);
    Color *color = pe->colors[number];
    uint32_t ready = ready_ports(sim, pe, color, &next);
    if (!ready) continue;
    ports[number] = (uint8_t)ready;
    colors |= (uint32_t)1 << number;
    if (color->frozen) continue;
    uint32_t outs = color->tx[color->position], accepted = ready & color->rx[color->position];
    meet |= (~color->valid >> color->position & 1) | (accepted & (accepted - 1));
    if (!accepted || !outs) continue;
    meet |= outs & wanted;
    wanted |= outs;
    if (meet) continue;
    int in = __builtin_ctz(accepted), out = __builtin_ctz(outs);
    int room = outs >> out != 1 ? has_room(sim, pe, color, port_head(color, in), outs)
               : out < RAMP     ? link_has_room(sim, pe, color, out)
                                : out == HOST || ramp_has_room(sim, pe, color, port_head(color, in));
    if (!room) continue;
    note_move(sim, pe, in, color, outs);
    next = sim->now + 1;
  }
  if (!meet) return next;
  sim->num_moves = before;
  return decide_by_turns(sim, pe, ports, colors, next);
}

/* ---- moves ------------------------------------------------------------------------------------------------------- */

/* Where SWITCH_ADV goes from here. */
static int next_position(const Color *color) {
  int following = color->position + 1;
  if (following < color->positions && color->valid >> following & 1) return following;
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
    count_wavelet(color);
  if (!arrives) return;
  Wavelet made = *w;
  made.ready = sim->now + (uint64_t)sim->timing.ramp_in;
  made.advance = 0;
  input_push(sim, color, made);
  pe->arrived |= (uint32_t)1 << color->color;
  if (pe->program) wake_core(sim, pe, made.ready);
}

static inline void enter_color(Sim *sim, Pe *pe, Color *color, int port, Wavelet w) {
  w.color = color->color;
  port_push(sim, color, port, w);
  color->occupied |= (uint8_t)(1u << port);
  pe->queued |= (uint32_t)1 << color->color;
  news(sim, pe, color->color, w.ready);
}

static inline void enter(Sim *sim, Pe *pe, int color, int port, Wavelet w) {
  if (!(pe->outside & HAS_SWAPS)) {
    enter_color(sim, pe, color_of(sim, pe, color), port, w);
    return;
  }
  for (uint32_t left = swap_receivers(pe, color, port); left; left &= left - 1)
    enter_color(sim, pe, color_of(sim, pe, __builtin_ctz(left)), port, w);
}

static inline void leave(Sim *sim, Pe *pe, Color *color, int out, const Wavelet *w, uint32_t data) {
  Wavelet copy = {sim->now + (uint64_t)sim->timing.hop, data, w->control, w->advance, 0, 0};
  if (pe->outside >> out & 1) color->gone[out]++;
  else enter(sim, neighbour(sim, pe, out), color->color, OPPOSITE[out], copy);
  pe->links[out]++;
  sim->hops++;
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

static inline void move(Sim *sim, const Move *m) {
  Pe *pe = m->pe;
  Color *color = m->color;
  Wavelet w = *port_head(color, m->port);
  port_drop(color, m->port);
  if (!color->occupied) pe->queued &= ~((uint32_t)1 << color->color);
  if (m->port < RAMP) { /* the neighbour may have waited for room, with this color or the one it swaps with */
    Pe *other = neighbour(sim, pe, m->port);
    other->alert |= (uint32_t)3 << (color->color & ~1);
    wake_router(sim, other, sim->now + 1);
  }
  int command = w.control ? (int)(w.data >> 22 & 3) : w.advance;
  uint32_t sent = w.control ? popped(color, w.data, command) : w.data;
  for (uint32_t outs = m->outs; outs; outs &= outs - 1) {
    int out = __builtin_ctz(outs);
    if (out < RAMP) leave(sim, pe, color, out, &w, sent);
    else if (out == RAMP) deliver(sim, pe, color, &w);
    else to_host(sim, pe, color, &w);
  }
  if (command) act(sim, pe, color, command);
}

/* From output queues into the router: one wavelet a PE. Whether anything happened; *next: when it may go on. */
static inline int inject(Sim *sim, Pe *pe, uint64_t *next) {
  int happened = 0, from = (int)(sim->now & 7);
  uint32_t turned = (uint32_t)pe->outputs_mask * 0x101u >> from & 0xFF;
  for (uint32_t left = turned; left; left &= left - 1) {
    int number = (__builtin_ctz(left) + from) & 7;
    Wavelet w = *output_head(pe, number);
    if (w.ready > sim->now + 1) {
      if (w.ready - 1 < *next) *next = w.ready - 1;
      continue;
    }
    if (!port_has_room(sim, pe, w.color, RAMP)) continue;
    output_drop(pe, number);
    w.ready = sim->now + 1;
    enter(sim, pe, w.color, RAMP, w);
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
