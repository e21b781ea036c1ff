#include "fill/widen.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "fill/batch_format.h"

namespace stoker {
namespace {

// __restrict: the compiler vectorises these loops only if it knows that shard, ids and labels don't overlap.
template <typename Token, typename Integer, bool kBoth, bool kLargest>
std::make_unsigned_t<Token> copy(const std::byte* __restrict source, uint32_t count, Integer* __restrict ids,
                                 Integer* __restrict labels) {
  std::make_unsigned_t<Token> largest = 0;
  for (uint32_t i = 0; i < count; ++i) {
    Token token;  // samples are not aligned to their values
    std::memcpy(&token, source + size_t{i} * sizeof(Token), sizeof(Token));
    ids[i] = static_cast<Integer>(token);  // what does not fit is seen in `largest`
    if constexpr (kBoth) labels[i] = static_cast<Integer>(token);
    if constexpr (kLargest) largest = std::max(largest, static_cast<std::make_unsigned_t<Token>>(token));
  }
  return largest;
}

template <typename Token, typename Integer>
uint64_t widen_from(const std::byte* source, uint32_t count, uint64_t limit, Integer* ids, Integer* labels) {
  const bool both = labels != nullptr;
  if (std::is_unsigned_v<Token> && std::numeric_limits<Token>::max() < limit) {
    if (both) return copy<Token, Integer, true, false>(source, count, ids, labels);
    return copy<Token, Integer, false, false>(source, count, ids, labels);
  }
  const auto largest = both ? copy<Token, Integer, true, true>(source, count, ids, labels)
                            : copy<Token, Integer, false, true>(source, count, ids, labels);
  const bool negative = std::is_signed_v<Token> && static_cast<std::make_signed_t<Token>>(largest) < 0;
  return negative ? UINT64_MAX : largest;
}

template <typename Token, typename Integer, bool kCopy>
LabelCounts copy_labels(const std::byte* __restrict source, uint32_t count, Integer* __restrict labels) {
  std::make_unsigned_t<Token> largest = 0;
  uint32_t num_ignored = 0;
  for (uint32_t i = 0; i < count; ++i) {
    Token label;
    std::memcpy(&label, source + size_t{i} * sizeof(Token), sizeof(Token));
    if constexpr (kCopy) labels[i] = static_cast<Integer>(label);
    const bool is_ignored = std::is_signed_v<Token> && label == static_cast<Token>(kIgnoreLabel);
    num_ignored += is_ignored;
    largest = std::max(largest,
                       is_ignored ? std::make_unsigned_t<Token>{0} : static_cast<std::make_unsigned_t<Token>>(label));
  }
  const bool negative = std::is_signed_v<Token> && static_cast<std::make_signed_t<Token>>(largest) < 0;
  return {negative ? UINT64_MAX : largest, num_ignored};
}

const std::byte* address_of(const TokenArray& source, uint32_t index) {
  return source.values + uint64_t{index} * size_bytes(source.type);
}

}  // namespace

template <typename Integer>
uint64_t widen(const TokenArray& source, uint32_t begin, uint32_t count, uint64_t limit, Integer* ids,
               Integer* labels) {
  return with_integer(source.type, [&](auto token) {
    return widen_from<decltype(token)>(address_of(source, begin), count, limit, ids, labels);
  });
}

template uint64_t widen(const TokenArray&, uint32_t, uint32_t, uint64_t, uint16_t*, uint16_t*);
template uint64_t widen(const TokenArray&, uint32_t, uint32_t, uint64_t, int32_t*, int32_t*);
template uint64_t widen(const TokenArray&, uint32_t, uint32_t, uint64_t, int64_t*, int64_t*);

template <typename Integer>
LabelCounts widen_labels(const TokenArray& source, uint32_t begin, uint32_t count, Integer* labels) {
  return with_integer(source.type, [&](auto label) {
    using Label = decltype(label);
    const std::byte* from = address_of(source, begin);
    return labels == nullptr ? copy_labels<Label, Integer, false>(from, count, labels)
                             : copy_labels<Label, Integer, true>(from, count, labels);
  });
}

template LabelCounts widen_labels(const TokenArray&, uint32_t, uint32_t, uint16_t*);
template LabelCounts widen_labels(const TokenArray&, uint32_t, uint32_t, int32_t*);
template LabelCounts widen_labels(const TokenArray&, uint32_t, uint32_t, int64_t*);

uint32_t count_equal(const TokenArray& source, uint32_t begin, uint32_t count, int64_t value) {
  return with_integer(source.type, [&](auto token) {
    const auto wanted = static_cast<decltype(token)>(value);
    if (static_cast<int64_t>(wanted) != value) return uint32_t{0};
    const std::byte* from = address_of(source, begin);
    uint32_t equal = 0;
    for (uint32_t i = 0; i < count; ++i) {
      std::memcpy(&token, from + size_t{i} * sizeof(token), sizeof(token));
      equal += token == wanted;
    }
    return equal;
  });
}

int64_t value_at(const TokenArray& source, uint32_t index) {
  return with_integer(source.type, [&](auto value) {
    std::memcpy(&value, address_of(source, index), sizeof(value));
    return static_cast<int64_t>(value);
  });
}

}  // namespace stoker
