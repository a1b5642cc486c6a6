// Vectors of 16 float32 and the two dtypes of weights, on GCC's vector extension: AVX-512 where there is one, split by the compiler where not.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "interface.h"

namespace {

typedef float Vector __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef float UnalignedVector __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t UnalignedHalves __attribute__((vector_size(32), aligned(2), may_alias));
typedef int32_t UnalignedIntegers __attribute__((vector_size(64), aligned(2), may_alias));

inline Vector splat(float value) { return value - Vector{}; }
inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
inline Vector multiply_add(Vector a, Vector b, Vector sum) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, sum);
#else
    return a * b + sum;  // fused, as -ffp-contract=fast has it
#endif
}
inline float total(Vector value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(value);
#else
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) value[i] += value[i + width];
    return value[0];
#endif
}
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// e^x to 2 units in the last place for x in -87..88 (Cephes): x = n ln 2 + r, e^x = 2^n p(r).
inline Vector exponential(Vector x) {
    x = larger(x, splat(-87.0f));
    x = x < splat(88.0f) ? x : splat(88.0f);
    const Vector shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    Vector n = multiply_add(x, splat(1.44269504f), shift) - shift;
    Vector r = multiply_add(n, splat(-0.693359375f), x);
    r = multiply_add(n, splat(2.12194440e-4f), r);
    Vector p = splat(1.9875691500e-4f);
    for (float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = multiply_add(p, r, splat(coefficient));
    p = multiply_add(p, r * r, r + splat(1.0f));
    Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    return p * (Vector)power;
}

// cap tanh(x / cap), to some units in the last place of the cap.
inline Vector soft_capped(Vector x, float cap) {
    return splat(cap) - splat(2.0f * cap) / (exponential(x * splat(2.0f / cap)) + splat(1.0f));
}

// What the two dtypes do differently. `Packed` is a vector of PAIR inputs for LANES outputs; `factor` is what multiplies all of its lanes.
// `dot` adds LANES * PAIR products to a vector of partial sums.
struct Float32 {
    using T = float;
    static constexpr int PAIR = 1;
    using Packed = Vector;
    static T from(float value) { return value; }
    static float to(T value) { return value; }
    static Packed packed(const T* from) { return load(from); }
    static float factor(const T* from) { return *from; }
    static Vector add(Vector sum, Packed w, float x) { return multiply_add(w, splat(x), sum); }
    static Vector widen(const T* from) { return load(from); }
    static Vector dot(Vector sum, const T* a, const T* b) { return multiply_add(load(a), load(b), sum); }
};

struct Bfloat16 {
    using T = uint16_t;
    static constexpr int PAIR = 2;
    using Packed = Integers;
    static T from(float value) {  // round to nearest, ties to even
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
    static float to(T value) {
        uint32_t bits = uint32_t(value) << 16;
        float result;
        std::memcpy(&result, &bits, 4);
        return result;
    }
    static Packed packed(const T* from) { return *reinterpret_cast<const UnalignedIntegers*>(from); }
    static int32_t factor(const T* from) {
        int32_t pair;
        std::memcpy(&pair, from, 4);
        return pair;
    }
    static Vector add(Vector sum, Packed w, int32_t x) {
#if defined(__AVX512BF16__)
        return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
#else
        Integers low = w << 16, high = w & int32_t(0xffff0000);
        sum = multiply_add((Vector)low, splat(to(uint16_t(x))), sum);
        return multiply_add((Vector)high, splat(to(uint16_t(uint32_t(x) >> 16))), sum);
#endif
    }
    static Vector widen(const T* from) {
        Integers wide = __builtin_convertvector(*reinterpret_cast<const UnalignedHalves*>(from), Integers) << 16;
        return (Vector)wide;
    }
    static Vector dot(Vector sum, const T* a, const T* b) {
#if defined(__AVX512BF16__)
        return _mm512_dpbf16_ps(sum, (__m512bh)packed(a), (__m512bh)packed(b));
#else
        return multiply_add(widen(a + LANES), widen(b + LANES), multiply_add(widen(a), widen(b), sum));
#endif
    }
};

template <class E>
void narrow(typename E::T* to, const float* from, int count) {
    for (int i = 0; i < count; i++) to[i] = E::from(from[i]);
}

}  // namespace
