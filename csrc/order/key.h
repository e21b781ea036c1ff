// Keys, random numbers and permutations of the order. Their values are part of the contract (ORDER_VERSION).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace stoker {

inline constexpr uint64_t kGolden64 = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio, odd: the step of splitmix64

/// Finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64 bits.
constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

/// Builds a 64-bit key from integers and names, in order. A name adds its byte length, then its FNV-1a hash.
class KeyBuilder {
 public:
  constexpr void add(uint64_t part) { hash_ = mix64(hash_ + kGolden64 + mix64(part)); }
  constexpr void add(std::string_view name) {
    uint64_t fnv = 0xCBF29CE484222325;
    for (const char c : name) fnv = (fnv ^ static_cast<uint8_t>(c)) * 0x100000001B3;  // bytes, whatever char's sign
    hash_ = mix64(hash_ ^ name.size());
    add(fnv);
  }
  constexpr uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = kGolden64;
};

/// The key of `parts`: key(seed, "block", name, pass).
template <typename... Parts>
constexpr uint64_t key(const Parts&... parts) {
  KeyBuilder builder;
  (builder.add(parts), ...);
  return builder.value();
}

/// splitmix64 as a counter: value i = 1, 2, ... is mix64(key + i * golden).
class Rng {
 public:
  explicit Rng(uint64_t key) : state_(key) {}

  /// Unbiased in [0, bound), bound > 0 (Lemire 2019).
  uint64_t below(uint64_t bound);

 private:
  uint64_t state_;
};

/// Keyed Fisher-Yates from the top: a bijection of [0, size) in O(size).
std::vector<uint32_t> permutation(uint64_t key, uint32_t size);

}  // namespace stoker
