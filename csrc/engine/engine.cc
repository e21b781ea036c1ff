#include "engine/engine.h"

#include <algorithm>
#include <cassert>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/process.h"
#include "fill/fill.h"

namespace stoker {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The pieces under the bytes of a range of samples.
void append_pieces(const std::shared_ptr<const Shard>& shard, Range samples, std::vector<Piece>& out) {
  const Range bytes = shard->bytes_of(samples);
  if (shard->body().num_pieces() == 0 || bytes.size() == 0) return;
  const uint32_t last_piece = shard->body().piece_at(bytes.end - 1);
  for (uint32_t i = shard->body().piece_at(bytes.begin); i <= last_piece; ++i) out.push_back({shard, i});
}

// What must be present to fill a batch, each piece once.
std::vector<Piece> pieces_of(const BatchPlan& plan) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < plan.segment_shards.size(); ++i) {
    const uint64_t sample = plan.rows.segments()[i].sample;
    append_pieces(plan.shards[plan.segment_shards[i]], {sample, sample + 1}, pieces);
  }
  const auto same = [](const Piece& a, const Piece& b) { return a.shard == b.shard && a.index == b.index; };
  std::sort(pieces.begin(), pieces.end());
  pieces.erase(std::unique(pieces.begin(), pieces.end(), same), pieces.end());
  return pieces;
}

}  // namespace

Engine::Pointer Engine::create(std::unique_ptr<Planner> planner, std::shared_ptr<ShardStore> store, BatchFormat format,
                               uint32_t num_workers) {
  if (planner->may_wait()) num_workers = std::max(num_workers, 1U);
  Pointer engine(new Engine(std::move(planner), std::move(store), std::move(format)));
  engine->threads_.reserve(num_workers);
  try {
    for (uint32_t i = 0; i < num_workers; ++i)
      engine->threads_.push_back(start_thread(text("stoker-", i), [e = engine.get()] { e->work(); }));
  } catch (const std::system_error& error) {
    throw SystemError(error.code().value(), "",
                      text("the system refused thread ", engine->threads_.size() + 1, " of num_workers=", num_workers,
                           ": ", error.code().message(), ". Lower num_workers, or raise the limit on processes"));
  }
  return engine;
}

Engine::Engine(std::unique_ptr<Planner> planner, std::shared_ptr<ShardStore> store, BatchFormat format)
    : store_(std::move(store)),
      format_(std::move(format)),
      fork_generation_(fork_generation()),
      planner_(std::move(planner)),
      next_row_(planner_->next_row()) {
  progress_.counts.resize(store_->streams().size());
  store_->claim();
}

Engine::~Engine() { close(); }

void Engine::Delete::operator()(Engine* engine) const {
  // In a forked child the mutex may be locked and the threads do not exist: the memory is left alone.
  if (engine->fork_generation_ == fork_generation()) delete engine;
}

// Before the mutex is touched: a fork may have copied it locked.
void Engine::check_process() const { check_same_process(fork_generation_); }

void Engine::check_open() const {
  if (is_closed_) throw ClosedError("the loader is closed.");
}

void Engine::submit(std::byte* buffer) {
  check_process();
  auto batch = std::make_unique<Batch>(buffer);
  Lock lock(mutex_);
  check_open();
  batches_.push_back(std::move(batch));
  // Not before half of the buffers wait: waking a thread costs as much as a small batch, and the other half is ready.
  const bool is_time = 2 * (batches_.size() - num_planned_) >= batches_.size();
  if (!is_time || num_idle_ == 0) return;
  lock.unlock();
  work_ready_.notify_one();
}

bool Engine::front_is_done() const {
  return !batches_.empty() &&
         (batches_.front()->state == Batch::State::kComplete || batches_.front()->state == Batch::State::kFailed);
}

bool Engine::wait(std::chrono::nanoseconds timeout) {
  check_process();
  Lock lock(mutex_);
  check_open();
  if (front_is_done()) return true;
  if (batches_.empty()) throw ArgumentError("wait() needs a submitted buffer.");
  if (timeout <= timeout.zero()) return false;
  const Clock::time_point start = Clock::now();
  do {  // at least one step a call, so that the shortest timeout gets there too
    if (threads_.empty() || has_quick_work()) {
      consumer_ = Consumer::kWorks;
      work_once(lock);
      consumer_ = Consumer::kAway;
      if (is_closed_) consumer_stopped_.notify_all();
    } else {
      consumer_ = Consumer::kWaits;
      front_done_.wait_until(lock, start + timeout, [this] { return is_closed_ || front_is_done(); });
      consumer_ = Consumer::kAway;
    }
  } while (!front_is_done() && !is_closed_ && Clock::now() - start < timeout);
  progress_.wait_s += seconds_since(start);
  check_open();
  return front_is_done();
}

bool Engine::has_batch() const {
  check_process();
  const std::lock_guard lock(mutex_);
  return !batches_.empty() && batches_.front()->state == Batch::State::kComplete;
}

BatchInfo Engine::next() {
  check_process();
  std::unique_ptr<Batch> head;  // its plan, maybe the last holder of a shard, is let go after the mutex
  const std::lock_guard lock(mutex_);
  check_open();
  if (!front_is_done()) throw ArgumentError("next() was called before wait() returned true.");
  if (batches_.front()->error) std::rethrow_exception(batches_.front()->error);
  head = std::move(batches_.front());
  batches_.pop_front();
  --num_planned_;
  BatchPlan& plan = *head->plan;
  BatchInfo info{
      plan.end_row,     plan.rows.counts(), plan.rows.size(), std::move(plan.row_tokens), std::move(plan.row_loss),
      head->max_seqlen, plan.hints};
  while (info.num_rows > 0 && plan.rows.row(info.num_rows - 1).empty()) --info.num_rows;
  next_row_ = info.end_row;
  ++progress_.num_batches;
  for (size_t s = 0; s < info.counts.size(); ++s) progress_.counts[s] += info.counts[s];
  return info;
}

std::optional<uint64_t> Engine::next_row() const {
  check_process();
  const std::lock_guard lock(mutex_);
  return is_closed_ ? std::nullopt : std::optional(next_row_);
}

Progress Engine::progress() const {
  if (fork_generation_ != fork_generation()) return {0, std::vector<StreamCounts>(store_->streams().size())};
  const std::lock_guard lock(mutex_);
  return progress_;
}

std::string Engine::waiting_for() const {
  check_process();
  const std::lock_guard lock(mutex_);
  if (batches_.empty()) return "no batch has been asked for";
  const Batch& head = *batches_.front();
  switch (head.state) {
    case Batch::State::kSubmitted:
      return "the batch is waiting to be planned";
    case Batch::State::kPlanning:
      return text("the batch is being planned (the lengths of ", planner_->num_lengths_read(),
                  " samples have been read)", planner_->waiting_for());
    case Batch::State::kLoading:
      for (const auto& [piece, waiters] : loading_)
        if (std::find(waiters.begin(), waiters.end(), &head) != waiters.end())
          return text("the batch waits for ", head.pieces_left, " piece(s) of compressed shards, one of them of ",
                      piece.shard->path());
      return "the batch waits for compressed shards";
    case Batch::State::kFilling:
      return text("the batch is being filled, ", head.jobs_left, " job(s) left");
    case Batch::State::kComplete:
    case Batch::State::kFailed:
      break;
  }
  return "nothing: the batch is ready";
}

void Engine::close() {
  if (fork_generation_ != fork_generation()) return;
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
  }
  work_ready_.notify_all();
  front_done_.notify_all();
  planner_->stop();
  const std::lock_guard joining(joining_);  // who closes second returns when it is done too
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();

  Lock lock(mutex_);
  consumer_stopped_.wait(lock, [this] { return consumer_ != Consumer::kWorks; });
  for (const Piece& piece : loads_) store_->pieces().abandon(piece);
  for (const std::unique_ptr<Batch>& batch : batches_)
    for (const Piece& piece : batch->pinned) store_->pieces().unpin(piece);
  loads_.clear();
  fills_.clear();
  loading_.clear();
  ahead_.clear();
  supplied_later_.clear();
  batches_.clear();
  store_->unclaim();
}

// ---------------------------------------------------------------- workers
void Engine::work() {
  Lock lock(mutex_);
  for (;;) {
    ++num_idle_;
    work_ready_.wait(lock, [this] { return is_closed_ || has_work(); });
    --num_idle_;
    if (is_closed_) return;
    work_once(lock);
  }
}

void Engine::work_once(Lock& lock) {
  assert(work_check_holds());
  assert(has_work());
  try {
    choose_work(lock);
  } catch (...) {  // no memory for the queues: what they hold is not complete any more
    if (!lock.owns_lock()) lock.lock();
    for (const std::unique_ptr<Batch>& batch : batches_)
      if (batch->state != Batch::State::kComplete) fail(*batch, std::current_exception());
  }
}

bool Engine::can_plan() const { return !is_planning_ && !has_failed_ && num_planned_ < batches_.size(); }

// What a consumer that waits helps with: it takes microseconds, as putting a thread to sleep and waking it does.
// Planning does where the shards that the order announced are open; opening one may take as long as a slow disk
// pleases, or as supplying it does.
bool Engine::has_quick_work() const {
  if (!fills_.empty()) return true;
  return !planner_->may_wait() && loads_.empty() && can_plan() && has_planned_ && !ahead_.has_shards() &&
         num_opening_ == 0;
}

bool Engine::has_work() const {
  return !fills_.empty() || !loads_.empty() || can_plan() || ahead_.has_shards() || ahead_.has_pieces();
}

void Engine::choose_work(Lock& lock) {
  if (!fills_.empty()) {
    fill(lock);
  } else if (!loads_.empty()) {
    Piece piece = std::move(loads_.front());
    loads_.pop_front();
    load(lock, std::move(piece));
  } else if (opens_next_ && ahead_.has_shards()) {
    opens_next_ = false;
    open_ahead(lock);
  } else if (can_plan()) {
    opens_next_ = true;
    plan(lock);
  } else if (ahead_.has_pieces()) {
    load_ahead(lock);
  } else {
    open_ahead(lock);
  }
}

void Engine::plan(Lock& lock) {
  Batch& batch = *batches_[num_planned_++];  // stays: only next() removes batches, and only complete ones
  batch.state = Batch::State::kPlanning;
  is_planning_ = true;
  lock.unlock();
  const Clock::time_point start = Clock::now();
  const double waited_s = planner_->waited_s();
  std::vector<Piece> pieces;
  std::vector<BlockChange> changes;
  std::exception_ptr error;
  try {
    if (planner_->approach()) {
      batch.plan = std::make_unique<BatchPlan>(planner_->next());
      pieces = pieces_of(*batch.plan);
    }
    changes = planner_->take_changes();
  } catch (...) {
    error = std::current_exception();
  }
  const double supply_s = planner_->waited_s() - waited_s;
  const double plan_s = seconds_since(start) - supply_s;
  lock.lock();
  progress_.plan_s += plan_s;
  progress_.supply_s += supply_s;
  is_planning_ = false;
  if (batch.error) return;  // it has failed meanwhile, with all others
  if (error) {
    fail(batch, error);
    return;
  }
  apply(changes);
  if (!batch.plan) {  // it is far; others may have more urgent work, or nobody wants it any more
    batch.state = Batch::State::kSubmitted;
    --num_planned_;
    return;
  }
  has_planned_ = true;
  batch.state = Batch::State::kLoading;
  batch.pinned.reserve(pieces.size());  // so that what is pinned is known to be
  for (const Piece& piece : pieces) begin_load(piece, batch);
  if (batch.pieces_left == 0) enqueue_fills(batch);
  wake_workers(fills_.size() + loads_.size() + 1);
}

// Holds the shards under the blocks at hand and the next ones, and notes which are new.
void Engine::apply(const std::vector<BlockChange>& changes) {
  for (const BlockChange& change : changes) {
    for (const ShardRange& range : change.ranges) {
      const ShardId id{change.stream, range.shard};
      if (change.kind == BlockChange::Kind::kEnds) {
        if (store_->release(id)) continue;
        ahead_.remove(id);
        supplied_later_.erase(id);
      } else if (change.kind == BlockChange::Kind::kBegins) {
        store_->hold(id);
        if (threads_.empty() || range.things.size() == 0) continue;  // there is nobody to look ahead, or no need to
        if (store_->is_supplied(change.stream) && !store_->supply().is_ready(id)) {
          supplied_later_.try_emplace(id, range.things);
        } else {
          ahead_.add(id, range.things);
        }
      } else if (store_->is_supplied(change.stream)) {
        store_->want(id);
      }
    }
  }
  note_ready();
}

void Engine::note_ready() {
  for (const ShardId id : store_->supply().take_news()) {
    const auto later = supplied_later_.extract(id);
    if (!later.empty()) ahead_.add(id, later.mapped());
  }
}

void Engine::begin_load(const Piece& piece, Batch& waiter) {
  const PieceCache::State found = store_->pieces().pin(piece);
  waiter.pinned.push_back(piece);  // has room: never fails
  if (found == PieceCache::State::kPresent) return;
  try {
    loading_[piece].push_back(&waiter);  // of this engine, if it is loading: until it is present
    if (found == PieceCache::State::kAbsent) loads_.push_back(piece);
  } catch (...) {
    if (found == PieceCache::State::kAbsent) {
      loading_.erase(piece);
      store_->pieces().abandon(piece);
    }
    throw;
  }
  ++waiter.pieces_left;
}

void Engine::load(Lock& lock, Piece piece) {
  lock.unlock();
  const Clock::time_point start = Clock::now();
  std::exception_ptr error;
  try {
    store_->pieces().load(piece);
  } catch (...) {
    error = std::current_exception();
  }
  const double load_s = seconds_since(start);
  lock.lock();
  progress_.load_s += load_s;
  if (error) store_->pieces().abandon(piece);  // together with the end of loading_, so that no pin falls in between
  auto waiters = loading_.extract(piece);
  for (Batch* batch : waiters.mapped()) {
    if (error) {
      fail(*batch, error);
    } else if (--batch->pieces_left == 0 && batch->state == Batch::State::kLoading) {
      enqueue_fills(*batch);
    }
  }
  wake_workers(fills_.size());
  lock.unlock();  // what follows may be the last holders of the shard
  waiters = {};
  piece = {};
  lock.lock();
}

void Engine::enqueue_fills(Batch& batch) {
  batch.state = Batch::State::kFilling;
  const size_t bytes_a_row = format_.fields_bytes() / format_.num_rows;
  const auto rows_a_job = static_cast<uint32_t>(std::max<size_t>(1, kJobBytes / bytes_a_row));
  for (uint32_t begin = 0; begin < format_.num_rows; begin += rows_a_job) {
    fills_.push_back({&batch, begin, std::min(begin + rows_a_job, format_.num_rows)});
    ++batch.jobs_left;
  }
}

void Engine::fill(Lock& lock) {
  const FillJob job = fills_.front();
  fills_.pop_front();
  Batch& batch = *job.batch;
  lock.unlock();
  const Clock::time_point start = Clock::now();
  std::exception_ptr error;
  try {
    fill_rows(format_, *batch.plan, job.begin, job.end, batch.buffer);
  } catch (...) {
    error = std::current_exception();
  }
  const double fill_s = seconds_since(start);
  lock.lock();
  progress_.fill_s += fill_s;
  if (error) fail(batch, error);
  if (--batch.jobs_left == 0) finish(lock, batch);
}

// All jobs of a batch are done.
void Engine::finish(Lock& lock, Batch& batch) {
  if (!batch.error) {
    lock.unlock();
    std::exception_ptr error;
    try {
      batch.max_seqlen = finish_batch(format_, *batch.plan, batch.buffer);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error) fail(batch, error);
  }
  std::vector<Piece> pinned = std::move(batch.pinned);
  batch.pinned.clear();
  if (!batch.error) batch.state = Batch::State::kComplete;
  wake_consumer();
  if (pinned.empty()) return;
  lock.unlock();
  for (const Piece& piece : pinned) store_->pieces().unpin(piece);
  pinned.clear();  // maybe the last holders of their shards
  lock.lock();
}

// Opens a shard that will be read from, and starts reading it.
void Engine::open_ahead(Lock& lock) {
  const auto part = ahead_.take_shard();
  if (!part) return;
  const auto [id, things] = *part;
  ++num_opening_;
  lock.unlock();
  std::vector<Piece> pieces;
  try {
    if (const std::shared_ptr<const Shard> shard = store_->get_if_there(id); shard && shard->num_tokens() > 0) {
      const Range samples = planner_->samples_of(*shard, things);
      shard->body().will_need(shard->bytes_of(samples));
      append_pieces(shard, samples, pieces);
    }
  } catch (const std::exception&) {
    // The error comes in its place in order, if the shard is still bad when it is needed.
  }
  lock.lock();
  --num_opening_;
  ahead_.add_pieces(std::move(pieces));
}

// Loads a piece that will be read from, if there is room.
void Engine::load_ahead(Lock& lock) {
  Piece piece = ahead_.take_piece();
  const auto [entry, is_new] = loading_.try_emplace(piece);
  if (piece.shard->is_held() && store_->pieces().pin_ahead(piece)) {
    load(lock, piece);
    lock.unlock();
    store_->pieces().unpin(piece);
  } else {
    if (is_new) loading_.erase(entry);
    lock.unlock();
  }
  piece = {};  // maybe the last holder of its shard
  lock.lock();
}

void Engine::fail(Batch& batch, std::exception_ptr error) {
  has_failed_ = true;
  if (batch.error) return;
  batch.error = std::move(error);
  batch.state = Batch::State::kFailed;
  wake_consumer();
}

void Engine::wake_workers(size_t jobs) {
  for (size_t i = 0; i < std::min<size_t>(jobs, num_idle_); ++i) work_ready_.notify_one();
}

void Engine::wake_consumer() {
  if (consumer_ == Consumer::kWaits && front_is_done()) front_done_.notify_one();
}

}  // namespace stoker
