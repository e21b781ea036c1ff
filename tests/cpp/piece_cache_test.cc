#include "shard/piece_cache.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "mds_files.h"
#include "shard/shard_store.h"

namespace stoker {
namespace {

using namespace testing_files;
using State = PieceCache::State;

/// A shard of four pieces of two pages, and one more of the same.
class PieceCacheTest : public testing::Test {
 protected:
  PieceCacheTest() {
    const ShardLengths lengths(8 * page_size_bytes() / 200 - 30, 94);
    form_.frame_bytes = 2 * page_size_bytes();
    files_ = {write_stream(directory_, "web", {lengths, lengths}, form_)};
    open();
  }
  void open() {
    store_ = std::make_unique<ShardStore>(files_, 0);
    shard_ = store_->get({0, 0});
    other_ = store_->get({0, 1});
    ASSERT_EQ(shard_->body().num_pieces(), 4U);
  }
  Piece piece(uint32_t index) const { return {shard_, index}; }
  uint64_t piece_bytes() const { return form_.frame_bytes; }
  static void load_and_unpin(PieceCache& cache, const Piece& piece) {
    ASSERT_EQ(cache.pin(piece), State::kAbsent);
    cache.load(piece);
    cache.unpin(piece);
  }
  static State state(PieceCache& cache, const Piece& piece) {
    const State state = cache.pin(piece);
    if (state == State::kAbsent) cache.abandon(piece);
    cache.unpin(piece);
    return state;
  }

  TemporaryDirectory directory_;
  Form form_{.compressed = true};
  std::vector<StreamFiles> files_;
  std::unique_ptr<ShardStore> store_;
  std::shared_ptr<const Shard> shard_;
  std::shared_ptr<const Shard> other_;
};

TEST_F(PieceCacheTest, APieceIsLoadedOnceAndStaysWhileThereIsRoom) {
  PieceCache cache(4 * piece_bytes());
  EXPECT_EQ(cache.pin(piece(0)), State::kAbsent);
  EXPECT_EQ(cache.pin(piece(0)), State::kLoading);
  cache.load(piece(0));
  EXPECT_EQ(cache.pin(piece(0)), State::kPresent);
  for (int i = 0; i < 3; ++i) cache.unpin(piece(0));
  EXPECT_EQ(state(cache, piece(0)), State::kPresent);
  EXPECT_EQ(cache.present_bytes(), piece_bytes());
}

TEST_F(PieceCacheTest, TheLeastRecentlyUsedPieceGoesFirst) {
  PieceCache cache(2 * piece_bytes());
  load_and_unpin(cache, piece(0));
  load_and_unpin(cache, piece(1));
  EXPECT_EQ(state(cache, piece(0)), State::kPresent);  // used again: 1 is the oldest now
  load_and_unpin(cache, piece(2));
  EXPECT_EQ(state(cache, piece(0)), State::kPresent);
  EXPECT_EQ(state(cache, piece(1)), State::kAbsent);
}

TEST_F(PieceCacheTest, PiecesOfShardsThatAreNotHeldGoBeforeOthers) {
  PieceCache cache(2 * piece_bytes());
  shard_->set_held(true);
  load_and_unpin(cache, piece(0));
  load_and_unpin(cache, {other_, 0});
  load_and_unpin(cache, piece(1));
  EXPECT_EQ(state(cache, piece(0)), State::kPresent);
  EXPECT_EQ(state(cache, {other_, 0}), State::kAbsent);
  load_and_unpin(cache, piece(2));  // all are held: the oldest goes
  EXPECT_EQ(state(cache, piece(0)), State::kPresent);
  EXPECT_EQ(state(cache, piece(1)), State::kAbsent);
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

TEST_F(PieceCacheTest, WhatIsLoadedAheadPushesOutWhatIsNotHeldOnly) {
  PieceCache cache(2 * piece_bytes());
  shard_->set_held(true);
  load_and_unpin(cache, piece(0));
  load_and_unpin(cache, {other_, 0});
  EXPECT_FALSE(cache.pin_ahead(piece(0)));  // it is there
  ASSERT_TRUE(cache.pin_ahead(piece(1)));   // in place of the other shard's
  cache.load(piece(1));
  cache.unpin(piece(1));
  EXPECT_EQ(state(cache, {other_, 0}), State::kAbsent);
  EXPECT_EQ(state(cache, piece(0)), State::kPresent);
  EXPECT_FALSE(cache.pin_ahead(piece(2)));
  shard_->set_held(false);
  EXPECT_TRUE(cache.pin_ahead(piece(2)));
}

TEST_F(PieceCacheTest, APieceThatWentIsLoadedAgain) {
  PieceCache cache(piece_bytes());
  for (int round = 0; round < 3; ++round) {
    for (uint32_t i = 0; i < 4; ++i) {
      ASSERT_EQ(cache.pin(piece(i)), State::kAbsent);
      cache.load(piece(i));
      EXPECT_NE(shard_->body().data()[i * piece_bytes() + 512], std::byte{0});
      cache.unpin(piece(i));
    }
    EXPECT_EQ(cache.present_bytes(), shard_->body().piece_bytes(3));
  }
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

TEST_F(PieceCacheTest, DroppingAShardUnloadsWhatIsNotPinnedAndTheRestWithItsLastPin) {
  PieceCache cache(4 * piece_bytes());
  load_and_unpin(cache, piece(0));
  load_and_unpin(cache, {other_, 0});
  ASSERT_EQ(cache.pin(piece(1)), State::kAbsent);
  cache.load(piece(1));
  shard_->retire();
  cache.drop(shard_);
  EXPECT_EQ(cache.present_bytes(), 2 * piece_bytes());
  cache.unpin(piece(1));
  EXPECT_EQ(cache.present_bytes(), piece_bytes());
  EXPECT_EQ(state(cache, {other_, 0}), State::kPresent);
  EXPECT_EQ(shard_.use_count(), 2);  // ours and the store's
}

TEST_F(PieceCacheTest, APieceThatCannotBeLoadedRetiresItsShardAndMayBeTriedAgain) {
  const std::string path = files_[0].directory + "/" + files_[0].shards[0].zip_basename;
  Bytes bytes = read_file(path);
  bytes[bytes.size() - 1] ^= std::byte{1};  // of the last frame's checksum
  write_file(path, bytes);
  open();
  PieceCache cache(4 * piece_bytes());
  ASSERT_EQ(cache.pin(piece(3)), State::kAbsent);
  EXPECT_THROW(cache.load(piece(3)), CorruptShardError);
  EXPECT_TRUE(shard_->is_retired());
  EXPECT_EQ(cache.pin(piece(3)), State::kLoading);  // until who owes the load gives up
  cache.abandon(piece(3));
  EXPECT_EQ(cache.present_bytes(), 0U);
  EXPECT_EQ(cache.pin(piece(3)), State::kAbsent);
}

}  // namespace
}  // namespace stoker
