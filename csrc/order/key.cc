#include "order/key.h"

#include <numeric>
#include <utility>

#include "base/int128.h"

namespace stoker {

uint64_t Rng::below(uint64_t bound) {
  for (;;) {
    state_ += kGolden64;
    const u128 product = static_cast<u128>(mix64(state_)) * bound;
    const auto low = static_cast<uint64_t>(product);
    // Values whose low word is below 2^64 mod bound are drawn again. That is less than bound, so the division is rare.
    if (low >= bound || low >= -bound % bound) return static_cast<uint64_t>(product >> 64);
  }
}

std::vector<uint32_t> permutation(uint64_t key, uint32_t size) {
  std::vector<uint32_t> items(size);
  std::iota(items.begin(), items.end(), 0U);
  Rng rng(key);
  for (uint32_t i = size; i > 1; --i) std::swap(items[i - 1], items[rng.below(i)]);
  return items;
}

}  // namespace stoker
