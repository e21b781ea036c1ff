// Fills submitted buffers with the batches of one rank, in order, on background threads.
//
// Protocol. The consumer submits buffers; the n-th one gets the n-th batch. A batch is planned (by one worker at a
// time, in order), its pieces of zstd shards are loaded (each once, whoever asked for it first), its rows are filled
// (in jobs of about kJobBytes), and next() hands it over. Every worker takes whatever there is to do, the oldest batch
// first: fill, else load, else plan, else look ahead at the shards that the order says will come; of these one is
// opened after each plan, too. A consumer that has to wait fills with them, and plans where that opens no shard. A
// worker is woken for each job that planning or loading makes, and by submit() when half of the buffers wait to be
// filled. Nobody waits while holding work: what is not ready is not in a queue yet. An error belongs to a batch and is
// delivered in its place, again at every later call; nothing is planned after it. Only planning waits for a shard that
// is still to be supplied (see ShardSupply), never in a consumer's hands; looking ahead opens those that have become
// ready. All shared state is guarded by one
// mutex; planning, loading, filling and opening files happen outside of it. The mutexes of the store and its piece
// cache are taken inside it, never the other way round.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/look_ahead.h"
#include "engine/planner.h"
#include "fill/batch_format.h"
#include "fill/plan.h"
#include "shard/shard_store.h"

namespace stoker {

/// What next() tells of the batch it hands over.
struct BatchInfo {
  uint64_t end_row;                        // global rows delivered once this batch is
  std::vector<StreamCounts> counts;        // of this rank's rows, by stream
  uint32_t num_rows;                       // that hold samples; those behind them are empty
  std::vector<uint32_t> row_tokens;        // of each row
  std::vector<uint32_t> row_loss;          // loss tokens of each row
  uint32_t max_seqlen;                     // the longest of cu_seqlens; 0 without these
  std::shared_ptr<const LaneHints> hints;  // of the state behind the batch; null where the layout needs none
};

/// What an engine has done so far. Seconds are of the threads that did the work.
struct Progress {
  uint64_t num_batches = 0;          // handed over
  std::vector<StreamCounts> counts;  // of these, by stream
  double plan_s = 0;
  double supply_s = 0;  // of planning, waiting for shards that are supplied, or for the order
  double load_s = 0;    // decompressing
  double fill_s = 0;
  double wait_s = 0;  // of the consumer, in wait(), its own work included
};

/// Thread-safe, for one consumer. Owns its threads, but no batch memory.
class Engine {
 public:
  static constexpr size_t kJobBytes = size_t{256} << 10;

  /// A forked child has the memory of an engine, but not its threads: it must not destroy it.
  struct Delete {
    void operator()(Engine* engine) const;
  };
  using Pointer = std::unique_ptr<Engine, Delete>;

  /// `num_workers` threads start at once; with 0 the work is done in wait(), and nothing is loaded ahead. Where
  /// planning may wait for others there is one thread at least.
  static Pointer create(std::unique_ptr<Planner> planner, std::shared_ptr<ShardStore> store, BatchFormat format,
                        uint32_t num_workers);

  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Gives a buffer of format.size_bytes() to the engine until next() hands it back, or the engine is closed.
  void submit(std::byte* buffer);

  /// Waits until next() has something to give or to raise. Returns false if `timeout` passes before that; zero only
  /// asks. Raises ClosedError if the engine is closed, meanwhile too.
  bool wait(std::chrono::nanoseconds timeout);

  /// Whether next() has a batch to give, and no error. Never waits.
  bool has_batch() const;

  /// The oldest submitted buffer is filled: hands it over. To be called when wait() has returned true. Raises the error
  /// of its batch, at every call.
  BatchInfo next();

  /// The global row at which the batch begins that next() hands over next; nothing once the engine is closed.
  std::optional<uint64_t> next_row() const;

  /// What the oldest batch waits for, as a part of a sentence.
  std::string waiting_for() const;

  /// In a forked child: nothing.
  Progress progress() const;

  /// Stops and joins all threads, and waits for a consumer that does their work. Buffers are not written afterwards.
  /// May be called by several threads at once, and again. In a forked child it does nothing.
  void close();

  /// Raises ClosedError in a forked child.
  void check_process() const;

 private:
  struct Batch {
    enum class State { kSubmitted, kPlanning, kLoading, kFilling, kComplete, kFailed };
    explicit Batch(std::byte* to) : buffer(to) {}
    std::byte* buffer;
    State state = State::kSubmitted;
    std::unique_ptr<BatchPlan> plan;
    std::vector<Piece> pinned;
    uint32_t pieces_left = 0;  // loading
    uint32_t jobs_left = 0;
    uint32_t max_seqlen = 0;
    std::exception_ptr error;
  };
  /// Rows [begin, end) of a batch whose pieces are all present.
  struct FillJob {
    Batch* batch;
    uint32_t begin;
    uint32_t end;
  };
  using Lock = std::unique_lock<std::mutex>;

  Engine(std::unique_ptr<Planner> planner, std::shared_ptr<ShardStore> store, BatchFormat format);
  ~Engine();

  void check_open() const;
  bool front_is_done() const;
  void work();
  bool can_plan() const;
  bool has_quick_work() const;
  bool has_work() const;
  void work_once(Lock& lock);
  void choose_work(Lock& lock);
  void plan(Lock& lock);
  void load(Lock& lock, Piece piece);
  void fill(Lock& lock);
  void finish(Lock& lock, Batch& batch);
  void open_ahead(Lock& lock);
  void load_ahead(Lock& lock);
  void apply(const std::vector<BlockChange>& changes);
  void note_ready();
  void begin_load(const Piece& piece, Batch& waiter);
  void enqueue_fills(Batch& batch);
  void fail(Batch& batch, std::exception_ptr error);
  void wake_workers(size_t jobs);
  void wake_consumer();

  const std::shared_ptr<ShardStore> store_;
  const BatchFormat format_;
  const uint64_t fork_generation_;
  std::unique_ptr<Planner> planner_;  // used by the one worker that has set is_planning_

  mutable std::mutex mutex_;
  std::condition_variable work_ready_;
  std::condition_variable front_done_;

  // Guarded by mutex_.
  std::deque<std::unique_ptr<Batch>> batches_;  // submitted and not handed over, in order
  size_t num_planned_ = 0;                      // of batches_, from the front; the one being planned counts
  bool is_planning_ = false;
  bool has_planned_ = false;  // a batch, so that it is known what comes
  uint32_t num_opening_ = 0;  // workers in open_ahead()
  bool opens_next_ = false;   // a batch was planned: one shard is opened ahead before the next one is
  bool has_failed_ = false;   // some batch has; nothing is planned any more
  bool is_closed_ = false;
  uint32_t num_idle_ = 0;                         // workers that wait
  enum class Consumer { kAway, kWaits, kWorks };  // kWorks: inside work_once()
  Consumer consumer_ = Consumer::kAway;
  uint64_t next_row_;  // where the batch in front begins
  std::deque<FillJob> fills_;
  std::deque<Piece> loads_;                       // to be loaded, oldest batch first
  std::map<Piece, std::vector<Batch*>> loading_;  // pieces in loads_ or being loaded, and who waits for them
  LookAhead ahead_;
  std::map<ShardId, Range> supplied_later_;  // what will go to ahead_ once it is ready
  Progress progress_;

  std::vector<std::thread> threads_;  // filled by create() before anybody else has the engine
  std::mutex joining_;                // held by the one that joins threads_
  std::condition_variable consumer_stopped_;
};

}  // namespace stoker
