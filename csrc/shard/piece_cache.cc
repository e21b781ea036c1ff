#include "shard/piece_cache.h"

#include <algorithm>
#include <cassert>

namespace stoker {
namespace {

uint64_t bytes(const Piece& piece) { return piece.shard->body().piece_bytes(piece.index); }

bool is_held(const Piece& piece) { return piece.shard->is_held() && !piece.shard->is_retired(); }

}  // namespace

PieceCache::State PieceCache::pin(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  return pin_locked(piece);
}

bool PieceCache::pin_ahead(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  const auto entry = entries_.find(piece);
  if (entry != entries_.end() && entry->second.state != State::kAbsent) return false;
  uint64_t needed = present_bytes_ + bytes(piece);
  for (auto idle = idle_.begin(); needed > limit_bytes_ && idle != idle_.end(); ++idle)
    if (!is_held(*idle)) needed -= bytes(*idle);
  if (needed > limit_bytes_) return false;
  pin_locked(piece);
  return true;
}

PieceCache::State PieceCache::pin_locked(const Piece& piece) {
  Entry& entry = entries_[piece];
  const State found = entry.state;
  if (found == State::kPresent && entry.pins == 0) idle_.erase(entry.idle);
  ++entry.pins;
  if (found == State::kAbsent) {
    entry.state = State::kLoading;
    present_bytes_ += bytes(piece);
  }
  return found;
}

void PieceCache::load(const Piece& piece) {
  {
    std::unique_lock lock(mutex_);
    while (present_bytes_ > limit_bytes_ && !idle_.empty()) unload(next_to_go(), lock);
    const Entry& entry = entries_.at(piece);
    unloaded_.wait(lock, [&] { return !entry.is_unloading; });
  }
  try {
    piece.shard->load(piece.index);
  } catch (...) {
    piece.shard->retire();
    throw;
  }
  const std::lock_guard lock(mutex_);
  entries_.at(piece).state = State::kPresent;
}

void PieceCache::abandon(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  entries_.at(piece).state = State::kAbsent;
  present_bytes_ -= bytes(piece);
}

void PieceCache::unpin(const Piece& piece) {
  std::unique_lock lock(mutex_);
  const auto place = entries_.find(piece);
  assert(place != entries_.end() && place->second.pins > 0);
  Entry& entry = place->second;
  if (--entry.pins > 0) return;
  assert(entry.state != State::kLoading);
  if (entry.state == State::kPresent) {
    entry.idle = idle_.insert(idle_.end(), piece);
    if (piece.shard->is_retired()) unload(entry.idle, lock);
  } else if (!entry.is_unloading) {
    entries_.erase(place);  // not the last holder of the shard: the caller has one
  }
}

void PieceCache::drop(const std::shared_ptr<const Shard>& shard) {
  std::unique_lock lock(mutex_);
  for (uint32_t i = 0; i < shard->body().num_pieces(); ++i) {
    const auto place = entries_.find({shard, i});
    if (place != entries_.end() && place->second.state == State::kPresent && place->second.pins == 0)
      unload(place->second.idle, lock);
  }
}

uint64_t PieceCache::present_bytes() const {
  const std::lock_guard lock(mutex_);
  return present_bytes_;
}

std::list<Piece>::iterator PieceCache::next_to_go() {
  const auto loose = std::find_if(idle_.begin(), idle_.end(), [](const Piece& piece) { return !is_held(piece); });
  return loose == idle_.end() ? idle_.begin() : loose;
}

// Gives the memory of a piece back, without the mutex. Pins in the meantime find it absent, but load() waits.
void PieceCache::unload(std::list<Piece>::iterator idle, std::unique_lock<std::mutex>& lock) {
  {
    const Piece piece = std::move(*idle);  // maybe the last holder of its shard, which closes without the mutex
    const auto place = entries_.find(piece);
    idle_.erase(idle);
    place->second.state = State::kAbsent;
    place->second.is_unloading = true;
    present_bytes_ -= bytes(piece);
    lock.unlock();
    piece.shard->unload(piece.index);
    lock.lock();
    place->second.is_unloading = false;
    if (place->second.pins == 0 && place->second.state == State::kAbsent) entries_.erase(place);
    unloaded_.notify_all();
    lock.unlock();
  }
  lock.lock();
}

}  // namespace stoker
