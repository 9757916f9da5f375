/* Arithmetic on bits, as sim/numerics.py defines it: one rounding to nearest even, canonical NaNs. */
#ifndef NUMERICS_H
#define NUMERICS_H

#include <math.h>
#include <string.h>
#include "machine.h"

static inline float f32_of(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t bits_of_f32(float f) {
  uint32_t bits;
  if (f != f) return 0x7FC00000u;
  memcpy(&bits, &f, 4);
  return bits;
}

static inline double f16_of(uint32_t bits) {
  uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value;
  if (exponent == 31) value = fraction ? NAN : INFINITY;
  else if (exponent == 0) value = (double)fraction * 0x1p-24;
  else {
    uint64_t made = ((uint64_t)exponent - 15 + 1023) << 52 | (uint64_t)fraction << 42;
    memcpy(&value, &made, 8);
  }
  return bits & 0x8000 ? -value : value;
}

static inline uint32_t bits_of_f16(double v) {
  uint64_t bits;
  if (v != v) return 0x7E00u;
  memcpy(&bits, &v, 8);
  uint32_t sign = (uint32_t)(bits >> 48) & 0x8000;
  double size = fabs(v);
  if (size >= 65520.0) return sign | 0x7C00;
  if (size < 0x1p-14) return sign | (uint32_t)nearbyint(size * 0x1p24);
  uint64_t fraction = bits & (((uint64_t)1 << 52) - 1), rest = fraction & (((uint64_t)1 << 42) - 1);
  uint32_t kept = (uint32_t)((bits >> 52 & 2047) - 1023 + 15) << 10 | (uint32_t)(fraction >> 42);
  if (rest > (uint64_t)1 << 41 || (rest == (uint64_t)1 << 41 && (kept & 1))) kept++;
  return sign | kept;
}

static inline double number_of(uint32_t bits, int half) { return half ? f16_of(bits) : (double)f32_of(bits); }
static inline uint32_t bits_of(double v, int half) { return half ? bits_of_f16(v) : bits_of_f32((float)v); }

static inline int64_t wrap(int64_t v, int kind) {
  switch (kind) {
    case T_I8: return (int8_t)v;
    case T_U8: return (uint8_t)v;
    case T_I16: return (int16_t)v;
    case T_U16: return (uint16_t)v;
    case T_I32: return (int32_t)v;
    case T_U32: return (uint32_t)v;
    default: return v;
  }
}

static inline int size_of(int kind) {
  static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 8, 8, 2, 4, 2};
  return sizes[kind];
}

static inline int is_float(int kind) { return kind == T_F16 || kind == T_F32; }

/* ADD SUB MUL DIV REM. A double holds these widths well enough to round once. */
static inline uint32_t float_operation(int op, uint32_t a, uint32_t b, int half) {
  double x = number_of(a, half), y = number_of(b, half);
  switch (op) {
    case ADD: return bits_of(x + y, half);
    case SUB: return bits_of(x - y, half);
    case MUL: return bits_of(x * y, half);
    case DIV: return bits_of(x / y, half);
    default: return bits_of(fmod(x, y), half);
  }
}

/* Integers of one type; a zero divisor is the caller's to find. */
static inline int64_t integer_operation(int op, int64_t a, int64_t b, int kind) {
  uint64_t x = (uint64_t)a, y = (uint64_t)b, bits = (uint64_t)size_of(kind) * 8;
  switch (op) {
    case ADD: return wrap((int64_t)(x + y), kind);
    case SUB: return wrap((int64_t)(x - y), kind);
    case MUL: return wrap((int64_t)(x * y), kind);
    case DIV:
      if (kind == T_U64) return (int64_t)(x / y);
      return wrap(b == -1 ? (int64_t)(0 - x) : a / b, kind);
    case REM:
      if (kind == T_U64) return (int64_t)(x % y);
      return wrap(b == -1 ? 0 : a % b, kind);
    case AND: return wrap(a & b, kind);
    case OR: return wrap(a | b, kind);
    case XOR: return wrap(a ^ b, kind);
    case SHL: return y < bits ? wrap((int64_t)(x << y), kind) : 0;
    default:
      if (kind == T_U64) return y < 64 ? (int64_t)(x >> y) : 0;
      return y < bits ? wrap(a >> y, kind) : (a < 0 ? -1 : 0);
  }
}

static inline int64_t compare(int op, int64_t a, int64_t b, int kind) {
  if (is_float(kind)) {
    double x = number_of((uint32_t)a, kind == T_F16), y = number_of((uint32_t)b, kind == T_F16);
    return op == EQ ? x == y : op == NE ? x != y : op == LT ? x < y : x <= y;
  }
  if (kind == T_U64) {
    uint64_t x = (uint64_t)a, y = (uint64_t)b;
    return op == EQ ? x == y : op == NE ? x != y : op == LT ? x < y : x <= y;
  }
  return op == EQ ? a == b : op == NE ? a != b : op == LT ? a < b : a <= b;
}

static inline int64_t integer_of(double v, int kind) {
  if (v != v) return 0;
  switch (kind) {
    case T_I64:
      return v >= 0x1p63 ? INT64_MAX : v <= -0x1p63 ? INT64_MIN : (int64_t)v;
    case T_U64:
      return v >= 0x1p64 ? -1 : v <= 0 ? 0 : (int64_t)(uint64_t)v;
    default: {
      int bits = size_of(kind) * 8, is_signed = !(kind & 1);
      double low = is_signed ? -ldexp(1, bits - 1) : 0, high = ldexp(1, is_signed ? bits - 1 : bits) - 1;
      return v <= low ? (int64_t)low : v >= high ? (int64_t)high : (int64_t)v;
    }
  }
}

static inline int64_t convert(int64_t value, int source, int target) {
  if (is_float(source)) {
    double number = number_of((uint32_t)value, source == T_F16);
    return is_float(target) ? (int64_t)bits_of(number, target == T_F16) : integer_of(number, target);
  }
  if (target == T_F32) return bits_of_f32(source == T_U64 ? (float)(uint64_t)value : (float)value);
  if (target == T_F16) return bits_of_f16(source == T_U64 ? (double)(uint64_t)value : (double)value);
  return wrap(value, target);
}

static inline uint32_t scaled(uint32_t a, uint32_t b, int half) {
  return bits_of(ldexp(number_of(a, half), (int16_t)b), half);
}

static inline uint32_t normalized(uint32_t a, int half) {
  int exponent;
  return bits_of(frexp(number_of(a, half), &exponent), half);
}

static inline uint32_t larger(uint32_t a, uint32_t b, int half) {
  double x = number_of(a, half), y = number_of(b, half);
  if (x != x || y != y) return half ? 0x7E00u : 0x7FC00000u;
  return x > y || (x == y && !(a >> (half ? 15 : 31) & 1)) ? a : b;
}

/* Bits of one element of a vector operation from the bits of its sources (as many as the operation has). */
static inline uint32_t result_of(int op, uint32_t a, uint32_t b, uint32_t c, uint8_t *carry) {
  switch (op) {
    case MOV16: case MOV32: case FMOVH: case FMOVS: return a;
    case ADD16: { uint32_t total = (a & 0xFFFF) + (b & 0xFFFF); *carry = (uint8_t)(total >> 16); return total & 0xFFFF; }
    case ADDC16: {
      uint32_t total = (a & 0xFFFF) + (b & 0xFFFF) + *carry;
      *carry = (uint8_t)(total >> 16);
      return total & 0xFFFF;
    }
    case SUB16: return (a - b) & 0xFFFF;
    case AND16: return a & b & 0xFFFF;
    case OR16: return (a | b) & 0xFFFF;
    case XOR16: return (a ^ b) & 0xFFFF;
    case SLL16: b &= 0xFFFF; return b < 16 ? a << b & 0xFFFF : 0;
    case SLR16: b &= 0xFFFF; return b < 16 ? (a & 0xFFFF) >> b : 0;
    case SAR16: b &= 0xFFFF; return (uint32_t)((int16_t)a >> (b < 16 ? b : 15)) & 0xFFFF;
    case CLZ: return (a & 0xFFFF) ? (uint32_t)__builtin_clz(a & 0xFFFF) - 16 : 16;
    case CTZ: return (a & 0xFFFF) ? (uint32_t)__builtin_ctz(a & 0xFFFF) : 16;
    case POPCNT: return (uint32_t)__builtin_popcount(a & 0xFFFF);
    case FABSH: return a & 0x7FFF;
    case FABSS: return a & 0x7FFFFFFF;
    case FADDH: return float_operation(ADD, a, b, 1);
    case FSUBH: return float_operation(SUB, a, b, 1);
    case FMULH: return float_operation(MUL, a, b, 1);
    case FADDS: return bits_of_f32(f32_of(a) + f32_of(b));
    case FSUBS: return bits_of_f32(f32_of(a) - f32_of(b));
    case FMULS: return bits_of_f32(f32_of(a) * f32_of(b));
    case FADDHS: return bits_of_f32((float)((double)f32_of(a) + f16_of(b)));
    case FMACH: return bits_of_f16(f16_of(b) * f16_of(c) + f16_of(a)); /* products of halves are exact */
    case FMACHS: return bits_of_f32((float)f16_of(b) * (float)f16_of(c) + f32_of(a));
    case FMACS: return bits_of_f32(f32_of(b) * f32_of(c) + f32_of(a));
    case FMAXH: return larger(a, b, 1);
    case FMAXS: return larger(a, b, 0);
    case FNEGH: return a ^ 0x8000;
    case FNEGS: return a ^ 0x80000000u;
    case FNORMH: return normalized(a, 1);
    case FNORMS: return normalized(a, 0);
    case FSCALEH: return scaled(a, b, 1);
    case FSCALES: return scaled(a, b, 0);
    case FH2S: return bits_of_f32((float)f16_of(a));
    case FS2H: return bits_of_f16((double)f32_of(a));
    case FH2XP16: return (uint32_t)integer_of(f16_of(a), T_I16) & 0xFFFF;
    case FS2XP16: return (uint32_t)integer_of((double)f32_of(a), T_I16) & 0xFFFF;
    case XP162FH: return bits_of_f16((double)(int16_t)a);
    default: return bits_of_f32((float)(int16_t)a); /* XP162FS */
  }
}

#endif
