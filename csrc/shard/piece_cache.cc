#include "shard/piece_cache.h"

#include <cassert>

namespace stoker {
namespace {

uint64_t bytes(const Piece& piece) { return piece.shard->body().piece_bytes(piece.index); }

}  // namespace

PieceCache::State PieceCache::pin(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  return pin_locked(piece);
}

bool PieceCache::pin_if_free(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  const auto entry = entries_.find(piece);
  if (entry != entries_.end() && entry->second.state != State::kAbsent) return false;
  if (bytes(piece) > limit_bytes_ || present_bytes_ > limit_bytes_ - bytes(piece)) return false;
  pin_locked(piece);
  return true;
}

PieceCache::State PieceCache::pin_locked(const Piece& piece) {
  Entry& entry = entries_[piece];
  const State found = entry.state;
  if (found == State::kPresent && entry.pins == 0) idle_.erase(entry.idle);
  ++entry.pins;
  if (found != State::kAbsent) return found;
  entry.state = State::kLoading;
  present_bytes_ += bytes(piece);
  while (present_bytes_ > limit_bytes_ && !idle_.empty()) {
    // Under the mutex, since a piece must not be loaded again while it is unloaded. It is one madvise.
    const Piece& oldest = idle_.front();
    oldest.shard->body().unload(oldest.index);
    present_bytes_ -= bytes(oldest);
    entries_.erase(oldest);
    idle_.pop_front();
  }
  return found;
}

void PieceCache::load(const Piece& piece) {
  try {
    piece.shard->body().load(piece.index);
  } catch (...) {
    piece.shard->set_broken();
    throw;
  }
  const std::lock_guard lock(mutex_);
  entries_[piece].state = State::kPresent;
}

void PieceCache::abandon(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  entries_[piece].state = State::kAbsent;
  present_bytes_ -= bytes(piece);
}

void PieceCache::unpin(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  const auto entry = entries_.find(piece);
  assert(entry != entries_.end() && entry->second.pins > 0);
  if (--entry->second.pins > 0) return;
  assert(entry->second.state != State::kLoading);
  if (entry->second.state == State::kPresent) {
    entry->second.idle = idle_.insert(idle_.end(), piece);
  } else {
    entries_.erase(entry);
  }
}

uint64_t PieceCache::present_bytes() const {
  const std::lock_guard lock(mutex_);
  return present_bytes_;
}

}  // namespace stoker
