#include "shard/piece_cache.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "mds_files.h"
#include "shard/shard_store.h"

namespace stoker {
namespace {

using namespace testing_files;
using State = PieceCache::State;

/// A shard of four pieces of one page and a bit.
class PieceCacheTest : public testing::Test {
 protected:
  PieceCacheTest() {
    const ShardLengths lengths(300, 25);
    form_.frame_bytes = (raw_shard("web", 0, lengths, form_).size() + 3) / 4;
    files_ = {write_stream(directory_, "web", {lengths}, form_)};
    store_ = std::make_unique<ShardStore>(files_, 0);
    shard_ = store_->get(0, 0);
  }
  Piece piece(uint32_t index) const { return {shard_, index}; }
  uint64_t piece_bytes() const { return form_.frame_bytes; }
  void load_and_unpin(PieceCache& cache, uint32_t index) {
    ASSERT_EQ(cache.pin(piece(index)), State::kAbsent);
    cache.load(piece(index));
    cache.unpin(piece(index));
  }

  TemporaryDirectory directory_;
  Form form_{.compressed = true};
  std::vector<StreamFiles> files_;
  std::unique_ptr<ShardStore> store_;
  std::shared_ptr<const Shard> shard_;
};

TEST_F(PieceCacheTest, APieceIsLoadedOnceAndStaysWhileThereIsRoom) {
  PieceCache cache(4 * piece_bytes());
  EXPECT_EQ(cache.pin(piece(0)), State::kAbsent);
  EXPECT_EQ(cache.pin(piece(0)), State::kLoading);
  cache.load(piece(0));
  EXPECT_EQ(cache.pin(piece(0)), State::kPresent);
  for (int i = 0; i < 3; ++i) cache.unpin(piece(0));
  EXPECT_EQ(cache.pin(piece(0)), State::kPresent);
  EXPECT_EQ(cache.present_bytes(), piece_bytes());
}

TEST_F(PieceCacheTest, TheLeastRecentlyUsedPieceGoesFirst) {
  PieceCache cache(2 * piece_bytes());
  load_and_unpin(cache, 0);
  load_and_unpin(cache, 1);
  EXPECT_EQ(cache.pin(piece(0)), State::kPresent);  // used again: 1 is the oldest now
  cache.unpin(piece(0));
  load_and_unpin(cache, 2);
  EXPECT_EQ(cache.pin(piece(0)), State::kPresent);
  EXPECT_EQ(cache.pin(piece(1)), State::kAbsent);
}

TEST_F(PieceCacheTest, PinnedPiecesStayBeyondTheLimit) {
  PieceCache cache(piece_bytes());
  for (uint32_t i = 0; i < 3; ++i) {
    ASSERT_EQ(cache.pin(piece(i)), State::kAbsent);
    cache.load(piece(i));
  }
  EXPECT_EQ(cache.present_bytes(), 3 * piece_bytes());
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(cache.pin(piece(i)), State::kPresent);
}

TEST_F(PieceCacheTest, WhatIsLoadedAheadPushesNothingOut) {
  PieceCache cache(2 * piece_bytes());
  load_and_unpin(cache, 0);
  EXPECT_TRUE(cache.pin_if_free(piece(1)));
  cache.load(piece(1));
  cache.unpin(piece(1));
  EXPECT_FALSE(cache.pin_if_free(piece(2)));
  EXPECT_FALSE(cache.pin_if_free(piece(1)));  // it is there
  EXPECT_EQ(cache.pin(piece(0)), State::kPresent);
}

TEST_F(PieceCacheTest, AnAbandonedPieceIsAbsentAgain) {
  PieceCache cache(piece_bytes());
  ASSERT_EQ(cache.pin(piece(0)), State::kAbsent);
  cache.abandon(piece(0));
  EXPECT_EQ(cache.pin(piece(0)), State::kAbsent);
  cache.abandon(piece(0));
  cache.unpin(piece(0));
  cache.unpin(piece(0));
  EXPECT_EQ(cache.present_bytes(), 0U);
}

TEST_F(PieceCacheTest, APieceThatCannotBeLoadedBreaksItsShardAndMayBeTriedAgain) {
  const std::string path = files_[0].directory + "/" + files_[0].shards[0].zip_basename;
  Bytes bytes = read_file(path);
  bytes[bytes.size() - 1] ^= std::byte{1};  // of the last frame's checksum
  write_file(path, bytes);
  shard_ = ShardStore(files_, 0).get(0, 0);
  PieceCache cache(4 * piece_bytes());
  ASSERT_EQ(cache.pin(piece(3)), State::kAbsent);
  EXPECT_THROW(cache.load(piece(3)), CorruptShardError);
  EXPECT_TRUE(shard_->is_broken());
  EXPECT_EQ(cache.pin(piece(3)), State::kLoading);  // until who owes the load gives up
  cache.abandon(piece(3));
  EXPECT_EQ(cache.present_bytes(), 0U);
  EXPECT_EQ(cache.pin(piece(3)), State::kAbsent);
}

}  // namespace
}  // namespace stoker
