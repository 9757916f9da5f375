/* The state of the machine: tables of the loaded image, PEs, routers, and the queues between them.
   docs/machine.md gives the meaning of every piece; the names follow wafer/isa.py and wafer/image.py. */
#ifndef MACHINE_H
#define MACHINE_H

#include <stdint.h>
#include <stddef.h>

#define NEVER ((uint64_t)1 << 62)
#define IDLE (NEVER - 1) /* of a router that is still in the list */
#define MEMORY_BYTES 49152
#define NUM_COLORS 24
#define NUM_THREADS 8
#define MAIN NUM_THREADS
#define STACK_SLOTS 4096
#define TEARDOWN_TASK 29
#define NO_ENTRY_POINT 31
#define NO_COLOR 0xFF
#define NO_RING 0xFF
#define HAS_SWAPS 0x80 /* some color swaps: beside the ports off the fabric */
#define ENDLESS 0x7FFF
#define MAX_WIDTH 8
#define ROUTER_RING 4 /* wavelets a bounded queue can hold: of a router's port, and between router and core */
#define CORE_RING 8

enum { NORTH, SOUTH, EAST, WEST, RAMP, HOST, NUM_PORTS };
enum { T_I8, T_U8, T_I16, T_U16, T_I32, T_U32, T_I64, T_U64, T_F16, T_F32, T_BF16 };
enum { KIND_NONE, KIND_SCALAR, KIND_POINTER, KIND_DSD, KIND_DSR, KIND_FIFO };
enum { MEM1D, MEM4D, FABIN, FABOUT, NO_DSD = 255 };
enum { CONTROL_BIT = 1 << 3, INDEX_OFFSET_BIT = 1 << 4, ADVANCE_SWITCH_BIT = 1 << 5, PAIR_BIT = 1 << 6, QUAD_BIT = 1 << 7,
       TRANSFORM_BIT = 1 }; /* TRANSFORM_BIT is bit 24 of a DSD's word */
#define CONTROL_MARK 0xC0000000u /* what marks a control wavelet in memory, with TRANSFORM_BIT */
enum { LOCAL_TASK, DATA_TASK, CONTROL_TASK };
enum { BLOCK_TASK = 0, BLOCK_MICROTHREAD = 1 };
enum { WAITS_DEST = 1, WAITS_SRC0 = 2, WAITS_SRC1 = 4, WAITS_SCALAR = 8 };
enum { NO_POP, ALWAYS_POP, POP_ON_ADVANCE, POP_ON_ADVANCE_NOP };
enum { FILTER_COUNTER, FILTER_SPARSE_COUNTER, FILTER_RANGE, NO_FILTER = 255 };

enum {
  HALT, MOV, MOV3, LDI, LDK, LDK3, ADD, SUB, MUL, DIV, REM, AND, OR, XOR, SHL, SHR, NEG, NOT, ADDI, EQ, NE, LT, LE,
  JMP, JZ, JNZ, CALL, RET, LD, ST, LDX, STX, CVT, ACTIVATE, BLOCK, UNBLOCK, VEC, LDDSR, DSDBASE, DSDLEN, DSDSTRIDE,
  DSDMOVE, IOPEN, IMORE, IGET, IPUT, TSC, CFGRD, CFGWR, SYS, ASSERT, RAND16, TSCST, DSRPRE
};

enum {
  UNBLOCK_CMD_STREAM, TEARDOWN_PENDING, TEARDOWN_EXIT, QUEUE_FLUSH, QUEUE_FLUSHED, QUEUE_FLUSH_EXIT, SET_INPUT_QUEUE,
  SET_OUTPUT_QUEUE, SET_ROUTE, SET_SWITCH_RX, SET_SWITCH_TX, SET_SWITCH_POSITION, INVALIDATE_SWITCHES, LOG_STRING,
  LOG_VALUE, LOG_FLUSH, SEED_RANDOM, RESET_COUNTER, FILTER, SET_FILTER, QUEUE_STATUS, TASK_PRIORITY, MAIN_PRIORITY,
  CONTROL_MASK, ROUTE, POP_MODE, RING_MODE, COMPLETED, FIFO_READ_LENGTH, FIFO_WRITE_LENGTH
};

enum {
  ADD16, ADDC16, SUB16, AND16, OR16, XOR16, SLL16, SLR16, SAR16, CLZ, CTZ, POPCNT, MOV16, MOV32, FABSH, FABSS, FADDH,
  FADDHS, FADDS, FSUBH, FSUBS, FMULH, FMULS, FMACH, FMACHS, FMACS, FMAXH, FMAXS, FMOVH, FMOVS, FNEGH, FNEGS, FNORMH,
  FNORMS, FSCALEH, FSCALES, FH2S, FS2H, FH2XP16, FS2XP16, XP162FH, XP162FS, DFILT, ITERATOR = 255
};

/* Run-time errors; core.py has the texts. */
enum {
  FAULT_NONE, FAULT_NO_ROUTE, FAULT_COLLISION, FAULT_UNBOUND_CONTROL, FAULT_UNBOUND_TASK,
  FAULT_BAD_ADDRESS, FAULT_DIVIDE, FAULT_STACK, FAULT_ASSERTION, FAULT_TASK_ID, FAULT_ID, FAULT_RANGE, FAULT_DSR,
  FAULT_NO_COLOR, FAULT_CONFIG, FAULT_ONE_WAVELET, FAULT_ONE_ELEMENT, FAULT_FILTER
};

/* What a thread waits for. */
enum { WAIT_NONE, WAIT_WAVELET, WAIT_ELEMENT, WAIT_OUTPUT_ROOM, WAIT_FIFO_ROOM };

enum { STOP_DONE, STOP_IDLE, STOP_LIMIT, STOP_FAULT };

/* Cycles, in the order core.py gives them. */
typedef struct {
  int32_t hop, ramp_in, ramp_out, float_latency, task_start, scalar, immediate, load, store, multiply, divide_int, divide_float,
      branch, call, task_bit, dsd_load, dsd_setup, vector_issue, timestamp, config;
} Timing;

/* ---- tables: rows of int32 as core.py writes them ---------------------------------------------------------------- */

typedef struct { int32_t entry, slots, arguments; } Function;
typedef struct { int32_t activate, unblock_kind, unblock_id; } Completion; /* activate -1: none; unblock_kind 15: none */
typedef struct { int32_t kind, value; } Operand;

typedef struct {
  int32_t op;
  Operand dest, src0, src1, scalar;
  int32_t is_async;
  Completion completion;
  int32_t microthread; /* -1: by the operands */
  int32_t priority;
  int32_t index; /* -1: none */
  int32_t loads; /* DSDs put into registers at the start */
  int32_t has_on_control;
  Completion on_control;
} Vector;

typedef struct {
  int32_t file, reg, slot, save_address, is_async;
  Completion completion;
  int32_t microthread, priority;
} DsrLoad;

typedef struct { int32_t kind, id, function, arguments, bits[4], is_signed[4]; } Task;
typedef struct { int32_t base, capacity, element_bytes; Completion on_push, on_pop; } FifoRow;

typedef struct {
  int32_t color, positions, rx[4], tx[4], valid, position, ring, pop, teardown, swap;
  int32_t filter, count_data, count_control, filter_control, init_counter, max_counter, limit1, limit2, min_idx, max_idx;
} Route;

typedef struct { uint32_t first, num_bytes; } Extent;

typedef struct {
  uint16_t *code; /* [instructions][4] */
  uint64_t *constants;
  Function *functions;
  Vector *vectors;
  DsrLoad *loads, *initial_loads;
  uint64_t *initial_slots; /* [initial loads][3] */
  FifoRow *fifos;
  int32_t num_fifos, num_initial, num_dsrs, num_iterators, num_setup;
  int32_t *setup; /* [num_setup][3]: system calls before the start */
  uint8_t *memory; /* MEMORY_BYTES */
  Extent *extents; /* what of it is not zero */
  int32_t num_extents;
  Task tasks[64 + 64]; /* local and data by id, then control by entry point */
  uint32_t local_mask, data_mask;
  uint64_t control_mask;
  uint32_t activated, blocked;
  uint8_t iq_color[8], oq_color[8];
  uint8_t iq_of_color[NUM_COLORS]; /* NO_COLOR: none */
  uint8_t dsr_of[3][64]; /* dense number of an explicit DSR, 255: never used */
} Program;

/* ---- queues ------------------------------------------------------------------------------------------------------ */

typedef struct {
  uint64_t ready; /* the first cycle at which it may be taken */
  uint32_t data;
  uint8_t control, advance, color, unused;
} Wavelet;

typedef struct { Wavelet *items; uint32_t head, len, capacity; } Queue; /* a ring that grows; capacity a power of two */

/* ---- the router's side ------------------------------------------------------------------------------------------- */

/* One color in one router: its route now, and what waits. What every wavelet needs fills one cache line. */
typedef struct {
  const Route *route; /* NULL: none */
  Wavelet *ports;     /* a ring of ROUTER_RING for each port that was used so far, in the order of first use */
  Wavelet *input;     /* a ring of CORE_RING: towards the core */
  uint32_t counter;
  uint8_t rx[4], tx[4], first[HOST], head[HOST], len[HOST], input_head, input_len; /* first: of a port's ring */
  uint8_t valid, positions, position, frozen, pending, occupied, depth, color, swap;
  uint8_t ring, num_rings, laps, owns_route;
  uint8_t said[4];  /* which half of a position is its own: bit 0 rx, bit 1 tx */
  uint32_t gone[4]; /* wavelets that left the rectangle at a side */
  Queue host_in, host_out;
} Color;

/* ---- the core's side --------------------------------------------------------------------------------------------- */

typedef struct {
  int64_t value; /* scalar bits or address */
  const DsrLoad *load;
  uint8_t kind, dsd, queue, color, flags, dims;
  uint16_t base;
  int16_t fifo, dsr;
  uint16_t extents[4];
  int16_t strides[4];
  uint16_t index[4]; /* of the next element, and its address (modulo 64 K) */
  int32_t at;
  uint32_t held; /* the wavelet of which the second half is to come */
} Source;

typedef struct {
  uint8_t op, is_async, thread, priority, has_sum, stopped, width, is_local, is_plain, has_on_control;
  uint8_t waits; /* operands at queues */
  uint8_t sizes[3], carry;
  int32_t index, pc; /* index -1: none */
  uint32_t sum;
  uint64_t length, position;
  uint64_t serial; /* tells one start from another */
  Completion completion, on_control;
  Source dest, src0, src1, scalar;
} Operation;

typedef struct { uint64_t slots[3]; const DsrLoad *load; } Dsr; /* load NULL: never loaded */
/* was_empty: a reader found nothing, was_full: a writer no room, since the last completion for that. */
typedef struct { uint32_t *items; uint32_t head, len; uint8_t was_empty, was_full; uint16_t read_length, write_length; } Fifo;
typedef struct { int32_t pc, fp; } Call;
typedef struct Launch { struct Launch *next; int32_t function, arguments; const int64_t *values; } Launch;

/* Cache line by cache line: what every step of the core needs, what it shares with the router, queues, the rest. */
typedef struct {
  _Alignas(64) uint64_t ready; /* of the main thread */
  Operation *sync;
  const Program *program;
  uint8_t *memory;
  int64_t busy;
  int32_t number; /* y * width + x */
  uint32_t activated, blocked;
  uint8_t threads_mask, blocked_threads, running, has_sync, failed, in_cores, cmd_done, last_task, main_class, has_high;
  uint8_t stopped, main_last; /* main_last: the turn of the main thread's class is to become 0 */

  _Alignas(64) uint32_t queued, arrived; /* colors with something in the router, for the core */
  uint32_t alert;                        /* colors that the router must look at: the others wait for news */
  uint8_t outputs_mask, flushing, flushed, outside; /* outside: ports off the fabric, and HAS_SWAPS */
  uint8_t iq_color[8], oq_color[8], output_head[8], output_len[8];
  struct Watch *watch; /* NULL: not watched */
  Launch *launches;

  Wavelet *outputs[8]; /* rings of CORE_RING; NULL: never used */

  int64_t links[4];
  uint64_t counted; /* the last cycle counted as busy in the main thread */
  int64_t *frames;
  int32_t x, y, pc, fp;

  Color *colors[NUM_COLORS];

  int32_t num_slots, num_calls, calls_capacity, acting; /* acting: instruction to blame, -1: the one at pc */
  uint8_t turn[5];     /* per class of priority */
  uint32_t high_tasks; /* task ids of high priority; has_high: there are some */
  uint32_t transform;  /* what TRANSFORM_BIT combines with a control wavelet that is sent */
  uint32_t lfsr;
  uint64_t counter_zero; /* the cycle at which TSC is 0 */
  Call *calls;
  Operation *threads[NUM_THREADS], *iterators;
  uint64_t next_issue[NUM_THREADS];
  Dsr *dsrs;
  Fifo *fifos;
} Pe;

/* ---- the whole --------------------------------------------------------------------------------------------------- */

typedef struct { uint64_t cycle, order; int64_t a, b, c; int32_t kind, pe, pc; } Fault;
typedef struct { uint64_t cycle; int64_t value; int32_t pe, kind, form, unused; } LogEntry; /* kind: SYS call */
typedef struct { uint64_t start, end; int64_t name; int32_t pe, thread, kind, unused; } EventRow; /* see watch.h */
typedef struct { Pe *pe; Color *color; int32_t port; uint32_t outs; } Move;

typedef struct {
  int32_t width, height, num_pes, is_wse3, router_depth, step[4]; /* step: bytes from a PE to its neighbours */
  int32_t iq_depth[8], oq_depth[8];
  int32_t widths[DFILT + 1];
  Timing timing;
  uint64_t now, horizon, busy_until; /* no PE may run ahead to horizon; busy_until: the cycle after the last issue */
  Pe *pes;
  uint64_t *core_next;   /* per PE: the first cycle at which the core may have something to do */
  uint64_t *router_next; /* the same for the router; NEVER: it is not in `routers` */
  uint8_t *memory;
  Program *programs;
  int32_t num_programs;
  Route **tables;
  int32_t *table_len, num_tables;
  uint32_t *cores, *routers;
  int32_t num_cores, num_routers;
  Move *moves;
  int32_t num_moves, moves_capacity;
  Fault fault;
  int32_t turn;  /* now modulo NUM_COLORS: where routers begin */
  int32_t phase; /* 0 core, 1 router: the order of faults of one cycle */
  LogEntry *log;
  int64_t num_log, log_capacity;
  EventRow *events;
  int64_t num_events, events_capacity;
  uint64_t serial;
  int64_t instructions, elements, hops;
  /* the condition of the present run */
  int32_t mode, x0, y0, x1, y1, color;
  int64_t left, count;
  void *arena;
} Sim;

enum { RUN_IDLE, RUN_COMMANDS, RUN_RECEIVED };

#endif
