#include "layout/best_fit.h"

#include <algorithm>
#include <bit>

namespace stoker {
namespace {

constexpr uint32_t kWordBits = 64;

}  // namespace

NumberSet::NumberSet(uint32_t limit) : limit_(limit) {
  size_t size = limit;
  do {
    size = (size + kWordBits - 1) / kWordBits;
    levels_.emplace_back(size);
  } while (size > 1);
}

void NumberSet::insert(uint32_t number) {
  for (std::vector<uint64_t>& level : levels_) {
    level[number / kWordBits] |= uint64_t{1} << (number % kWordBits);
    number /= kWordBits;
  }
}

void NumberSet::erase(uint32_t number) {
  for (std::vector<uint64_t>& level : levels_) {
    uint64_t& word = level[number / kWordBits];
    word &= ~(uint64_t{1} << (number % kWordBits));
    if (word != 0) return;
    number /= kWordBits;
  }
}

uint32_t NumberSet::at_least(uint32_t number) const {
  // Up until a word has a member from `number` on, then down to the smallest one under it.
  for (size_t level = 0; level < levels_.size(); ++level) {
    const size_t index = number / kWordBits;
    if (index >= levels_[level].size()) break;
    const uint64_t rest = levels_[level][index] & (UINT64_MAX << (number % kWordBits));
    if (rest == 0) {
      number = static_cast<uint32_t>(index) + 1;
      continue;
    }
    auto found = static_cast<uint32_t>(index * kWordBits) + static_cast<uint32_t>(std::countr_zero(rest));
    while (level-- > 0) found = found * kWordBits + static_cast<uint32_t>(std::countr_zero(levels_[level][found]));
    return found;
  }
  return limit_;
}

BestFit::BestFit(uint32_t seq_len, uint32_t max_pieces)
    : seq_len_(seq_len), max_pieces_(max_pieces), rooms_(seq_len + 1), newest_(size_t{seq_len} + 1, kNone) {}

void BestFit::open_to_more(uint32_t row, uint32_t room) {
  older_[row] = newest_[room];
  newest_[room] = row;
  if (older_[row] == kNone) rooms_.insert(room);
}

std::vector<uint32_t> BestFit::pack(std::span<const uint32_t> sizes, std::vector<uint32_t>& sorted) {
  std::vector<uint64_t> keys(sizes.size());  // longest first, then as given
  for (uint32_t i = 0; i < sizes.size(); ++i) keys[i] = uint64_t{seq_len_ - sizes[i]} << 32 | i;
  std::sort(keys.begin(), keys.end());

  std::vector<uint32_t> rows(sizes.size());
  std::vector<uint32_t> pieces_in;  // by row
  older_.clear();
  for (const uint64_t key : keys) {
    const auto piece = static_cast<uint32_t>(key);
    const uint32_t size = sizes[piece];
    uint32_t room = rooms_.at_least(size);
    uint32_t row = 0;
    if (room > seq_len_) {
      room = seq_len_;
      row = static_cast<uint32_t>(older_.size());
      older_.push_back(kNone);
      pieces_in.push_back(0);
    } else {
      row = newest_[room];
      newest_[room] = older_[row];
      if (newest_[room] == kNone) rooms_.erase(room);
    }
    rows[piece] = row;
    sorted.push_back(piece);
    if (++pieces_in[row] != max_pieces_) open_to_more(row, room - size);
  }
  // Leave nothing behind: rows that took more until the end.
  for (uint32_t room = rooms_.at_least(0); room <= seq_len_; room = rooms_.at_least(room + 1)) {
    newest_[room] = kNone;
    rooms_.erase(room);
  }
  return rows;
}

}  // namespace stoker
