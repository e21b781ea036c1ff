#include "layout/listed_layout.h"

#include <algorithm>
#include <iterator>
#include <unordered_map>

#include "base/error.h"
#include "order/dealing.h"

namespace stoker {
namespace {

constexpr size_t kBlocksNeeded = 2;  // the one at hand and the next

/// The samples that a block needs of a shard are told in eighths of the shard: a few more, so that the next block,
/// which mostly needs others between the same ones, has nothing to tell.
Range widened(Range samples, uint64_t shard_size) {
  const uint64_t step = std::max<uint64_t>(1, shard_size / 8);
  return {samples.begin / step * step, std::min(shard_size, ceil_div(samples.end, step) * step)};
}

ArgumentError damaged(const std::string& what) {
  return ArgumentError(text("the state is damaged: it says that ", what, ". Load another checkpoint."));
}

}  // namespace

ListedLayout::ListedLayout(const LayoutSpec& spec, const Order& order, SampleLengths& lengths,
                           std::shared_ptr<SampleList> list, LayoutStart start)
    : spec_(spec),
      order_(order),
      lengths_(lengths),
      list_(std::move(list)),
      start_(std::move(start)),
      leftovers_(spec.kind == LayoutKind::kPack ? spec.num_packers : 0) {}

void ListedLayout::append_row(uint64_t row, Rows& out) {
  if (const uint64_t batch = row / order_.spec().global_batch; batch != batch_) {
    open_batch();
    batch_ = batch;
  }
  for (const Unplaced& sample : std::exchange(unplaced_, {})) out.count_unplaced(sample);
  if (next_row_ < rows_.size()) {
    for (const auto& [segment, truncated] : rows_[next_row_++]) {
      out.count_unit(segment.stream);
      if (truncated > 0) out.count_truncated(segment.stream, truncated);
      if (segment.size() == 0) out.count_empty(segment.stream);
      out.add(segment);
    }
  }
  out.end_row();
}

std::shared_ptr<const LaneHints> ListedLayout::hints(uint64_t /*row*/) {
  if (spec_.kind != LayoutKind::kPack) return nullptr;
  auto out = std::make_shared<LaneHints>();
  for (uint32_t packer = 0; packer < leftovers_.size(); ++packer) {
    LaneHint& hint = out->emplace_back();
    hint.lane = packer;
    for (const FoundryPacker::Bin& bin : leftovers_[packer].bins) hint.leftovers.push_back(bin.examples);
  }
  return out;
}

// ---------------------------------------------------------------- batches
void ListedLayout::open_batch() {
  if (next_row_ < rows_.size())
    throw ArgumentError(text("a batch of the list makes ", rows_.size(), " rows, more than there is room for."));
  rows_.clear();
  next_row_ = 0;
  if (start_.hints) restore_leftovers();
  if (blocks_.empty() || batch_in_chunk_ == blocks_.front().chunk.batch_ends.size()) next_block();
  take_blocks();
  const SampleList::Chunk& chunk = blocks_.front().chunk;
  const uint32_t begin = batch_in_chunk_ == 0 ? 0 : chunk.batch_ends[batch_in_chunk_ - 1];
  const auto samples = std::span(chunk.samples).subspan(begin, chunk.batch_ends[batch_in_chunk_] - begin);
  if (spec_.kind == LayoutKind::kPack) {
    pack((chunk.first_packer + batch_in_chunk_) % spec_.num_packers, samples);
  } else {
    for (const uint64_t sample : samples) rows_.push_back({part_of(sample)});
  }
  ++batch_in_chunk_;
}

void ListedLayout::pack(uint32_t packer, std::span<const uint64_t> samples) {
  std::vector<uint64_t> numbers;
  NumberedParts parts;
  for (const uint64_t sample : samples) {
    const Part part = part_of(sample);
    if (part.segment.size() == 0) {
      unplaced_.push_back({part.segment.stream, 0});
    } else {
      numbers.push_back(sample);
      parts.emplace(sample, part);  // a sample that comes twice is the same part
    }
  }
  auto [rows, dropped] = pack_as_foundry(spec_, numbers, parts, leftovers_[packer]);
  rows_ = std::move(rows);
  for (const Part& part : dropped) unplaced_.push_back(left_out(part));
}

Part ListedLayout::part_of(uint64_t sample) {
  const SampleUnit unit = measure(list_->place(sample), lengths_);
  check_length(spec_, order_, unit, lengths_);
  return truncate(unit, spec_.seq_len);
}

// Hints come from outside: what they say is checked. Not before the first batch, since it reads lengths.
void ListedLayout::restore_leftovers() {
  const std::shared_ptr<const LaneHints> hints = std::exchange(start_.hints, nullptr);
  for (const LaneHint& hint : *hints) {
    if (hint.lane >= leftovers_.size())
      throw damaged(text("packer ", hint.lane, " has left samples over, and there are ", leftovers_.size()));
    FoundryLeftovers& left = leftovers_[hint.lane];
    for (const std::vector<uint64_t>& samples : hint.leftovers) {
      FoundryPacker::Bin& bin = left.bins.emplace_back(FoundryPacker::Bin{0, samples});
      for (const uint64_t sample : samples) {
        const Part part = part_of(sample);
        left.parts.emplace(sample, part);
        bin.size += part.segment.size();
      }
      if (bin.size == 0 || bin.size > spec_.seq_len)
        throw damaged(text("a row of ", bin.size, " tokens is left over from packing"));
    }
  }
}

void ListedLayout::drop_leftovers() {
  for (FoundryLeftovers& left : leftovers_) {
    for (const FoundryPacker::Bin& bin : left.bins)
      for (const uint64_t sample : bin.examples) unplaced_.push_back(left_out(left.parts.at(sample)));
    left = {};
  }
}

// ---------------------------------------------------------------- blocks
void ListedLayout::next_block() {
  Block done;
  if (!blocks_.empty()) {
    done = std::move(blocks_.front());
    blocks_.pop_front();
  }
  if (blocks_.empty()) blocks_.push_back(make_block(list_->take()));
  take_blocks();  // what begins is told first, so that what goes on is never over in between
  tell(BlockChange::Kind::kEnds, done);
  batch_in_chunk_ = 0;
  if (blocks_.front().chunk.begins_anew) drop_leftovers();
}

// Takes what is there of the list, as far as it is to be known, and tells what is new.
void ListedLayout::take_blocks() {
  uint32_t ahead = 0;
  for (uint32_t s = 0; s < order_.num_streams(); ++s) ahead = std::max(ahead, order_.blocks_ahead(s));
  while (blocks_.size() < kBlocksNeeded + ahead) {
    std::optional<SampleList::Chunk> chunk = list_->take_if_there();
    if (!chunk) break;
    blocks_.push_back(make_block(std::move(*chunk)));
  }
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const bool is_needed = i < kBlocksNeeded;
    Block& block = blocks_[i];
    const Block::Told told = is_needed ? Block::Told::kBegins : Block::Told::kComing;
    if (block.told >= told) continue;
    block.told = told;
    tell(is_needed ? BlockChange::Kind::kBegins : BlockChange::Kind::kComing, block);
  }
}

ListedLayout::Block ListedLayout::make_block(SampleList::Chunk chunk) const {
  Block block;
  std::unordered_map<uint64_t, size_t> known;  // place in block.shards, by stream and shard
  std::vector<uint64_t> sizes;                 // of these shards
  for (const uint64_t number : chunk.samples) {
    const auto [stream, shard, sample] = list_->place(number);
    const auto [place, is_new] = known.try_emplace(uint64_t{stream} << 32 | shard, block.shards.size());
    if (is_new) {
      block.shards.push_back({stream, {shard, {sample, sample}}});
      sizes.push_back(list_->shard_size(number));
    }
    Range& samples = block.shards[place->second].second.things;
    samples = {std::min<uint64_t>(samples.begin, sample), std::max<uint64_t>(samples.end, uint64_t{sample} + 1)};
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    Range& samples = block.shards[i].second.things;
    samples = widened(samples, sizes[i]);
  }
  block.chunk = std::move(chunk);
  return block;
}

void ListedLayout::tell(BlockChange::Kind kind, const Block& block) {
  for (auto [stream, range] : block.shards) {
    const auto use = uses_.try_emplace({stream, range.shard}).first;
    auto& [num_blocks, told] = use->second;
    if (kind == BlockChange::Kind::kBegins) {
      ++num_blocks;
      if (told.size() == 0) told = range.things;
      const Range all{std::min(told.begin, range.things.begin), std::max(told.end, range.things.end)};
      if (num_blocks > 1 && all.size() == told.size()) range.things = {};
      told = all;
    } else if (kind == BlockChange::Kind::kEnds) {
      --num_blocks;
    }
    if (num_blocks == 0) uses_.erase(use);
    if (changes_.empty() || changes_.back().stream != stream || changes_.back().kind != kind)
      changes_.push_back({stream, kind, {}});
    changes_.back().ranges.push_back(range);
  }
}

}  // namespace stoker
