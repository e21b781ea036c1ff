// Batches for Python: their format, the buffers that they are filled into, and the engine.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/buffer_pool.h"
#include "base/error.h"
#include "bindings/bind.h"
#include "engine/engine.h"
#include "engine/planner.h"
#include "fill/batch_format.h"
#include "layout/layout.h"
#include "order/order.h"
#include "order/sample_list.h"
#include "shard/shard_store.h"

namespace stoker {
namespace {

BatchFormat make_batch_format(const std::vector<std::pair<std::string, std::string>>& fields, uint32_t num_rows,
                              uint32_t seq_len, int64_t pad_id, bool pad_left, std::string_view documents,
                              std::vector<int64_t> document_tokens, bool counts_padding, bool ignores_pad_id,
                              bool needs_loss, bool is_packed, uint32_t pad_to_multiple, uint64_t vocab_size,
                              uint32_t cu_seqlens_capacity) {
  static constexpr std::pair<const char*, Field> kFields[] = {
      {"input_ids", Field::kInputIds},       {"labels", Field::kLabels},
      {"loss_mask", Field::kLossMask},       {"attention_mask", Field::kAttentionMask},
      {"position_ids", Field::kPositionIds}, {"sequence_id", Field::kSequenceId},
      {"stream_ids", Field::kStreamIds}};
  static constexpr std::pair<const char*, BatchFormat::Documents> kDocuments[] = {
      {"samples", BatchFormat::Documents::kSamples},
      {"eos", BatchFormat::Documents::kEos},
      {"bos", BatchFormat::Documents::kBos}};
  BatchFormat format;
  for (const auto& [field, type] : fields) format.fields.push_back({by_name(kFields, field), integer_type(type)});
  format.num_rows = num_rows;
  format.seq_len = seq_len;
  format.pad_id = pad_id;
  format.pad_left = pad_left;
  format.documents = by_name(kDocuments, documents);
  format.document_tokens = std::move(document_tokens);
  format.counts_padding = counts_padding;
  format.ignores_pad_id = ignores_pad_id;
  format.needs_loss = needs_loss;
  format.is_packed = is_packed;
  format.pad_to_multiple = pad_to_multiple;
  format.vocab_size = vocab_size;
  format.cu_seqlens_capacity = cu_seqlens_capacity;
  return format;
}

/// The engine together with the Python objects whose memory it fills.
class BoundEngine {
 public:
  BoundEngine(std::shared_ptr<ShardStore> store, std::shared_ptr<Order> order, const LayoutSpec& layout,
              const BatchFormat& format, uint32_t rank, uint32_t world_size, uint64_t first_row, uint64_t hints_row,
              std::shared_ptr<LaneHints> hints, std::shared_ptr<SampleList> list, uint32_t num_workers,
              std::vector<std::pair<py::object, uintptr_t>> buffers) {
    auto planner = std::make_unique<Planner>(store, std::move(order), layout, RankSlice{rank, world_size}, first_row,
                                             LayoutStart{hints_row, std::move(hints)}, std::move(list));
    engine_ = Engine::create(std::move(planner), std::move(store), format, num_workers);
    for (auto& [buffer, address] : buffers) submit(std::move(buffer), address);
  }

  ~BoundEngine() {
    if (engine_) close();
  }

  /// Waits for the oldest buffer, in slices, so that Ctrl-C gets through; takes it and submits another in one go.
  /// `timeout_s` 0: for as long as it takes. After an exception of the wait nothing has changed.
  py::tuple next(double timeout_s, py::object replacement, uintptr_t address) {
    wait(timeout_s);
    last_ = py::cast(engine_->next());
    py::object buffer = std::move(buffers_.front());
    buffers_.pop_front();
    submit(std::move(replacement), address);
    return py::make_tuple(std::move(buffer), last_);
  }

  py::object last() const { return last_; }
  bool has_batch() const { return engine_->has_batch(); }
  std::optional<uint64_t> next_row() const { return engine_->next_row(); }
  void check_process() const { engine_->check_process(); }
  Progress progress() const { return engine_->progress(); }

  void close() {
    const py::gil_scoped_release release;  // joins threads; they never take the GIL
    engine_->close();
  }

 private:
  void submit(py::object buffer, uintptr_t address) {
    buffers_.push_back(std::move(buffer));
    try {
      engine_->submit(reinterpret_cast<std::byte*>(address));  // of the buffer's memory, which it keeps alive
    } catch (...) {
      buffers_.pop_back();
      throw;
    }
  }

  void wait(double timeout_s) const {
    using Seconds = std::chrono::duration<double>;
    static constexpr Seconds kSlice{0.1};
    if (engine_->wait(std::chrono::nanoseconds::zero())) return;
    const auto start = std::chrono::steady_clock::now();
    for (Seconds left(timeout_s > 0 ? timeout_s : HUGE_VAL);;) {
      {
        const py::gil_scoped_release release;
        if (engine_->wait(std::chrono::ceil<std::chrono::nanoseconds>(std::min(left, kSlice)))) return;
      }
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (timeout_s == 0) continue;
      left = Seconds(timeout_s) - (std::chrono::steady_clock::now() - start);
      if (left.count() <= 0) raise_timeout(timeout_s);
    }
  }

  [[noreturn]] void raise_timeout(double timeout_s) const {
    const std::string message =
        text("no batch came within the timeout of ", timeout_s, " s: ", engine_->waiting_for(), ".");
    PyErr_SetString(PyExc_TimeoutError, message.c_str());
    throw py::error_already_set();
  }

  py::object last_ = py::none();    // what next() told last: an interrupt may come before its caller has it
  std::deque<py::object> buffers_;  // in the order of submission; outlive the engine's threads
  Engine::Pointer engine_;
};

/// The fields of a batch, each an array that keeps the buffer alive; behind them cu_seqlens, if it is asked for.
py::list arrays_of(const py::object& buffer, const BatchFormat& format) {
  std::byte* at = buffer.cast<BufferPool::Buffer&>().data();
  py::list fields(format.fields.size());
  for (size_t i = 0; i < fields.size(); ++i) {
    fields[i] = py::array(dtype_of(format.fields[i].type), {format.num_rows, format.seq_len}, at, buffer);
    at += format.field_bytes(format.fields[i]);
  }
  if (format.cu_seqlens_capacity > 0)
    fields.append(py::array(py::dtype::of<int32_t>(), {format.cu_seqlens_capacity + 1}, at, buffer));
  return fields;
}

/// Where each of them begins.
std::vector<size_t> offsets_of(const BatchFormat& format) {
  std::vector<size_t> offsets{0};
  for (const FieldFormat& field : format.fields) offsets.push_back(offsets.back() + format.field_bytes(field));
  if (format.cu_seqlens_capacity == 0) offsets.pop_back();
  return offsets;
}

/// One number of each stream, as an array.
template <uint64_t StreamCounts::* kMember, typename Owner>
Array<uint64_t> counts_of(const Owner& owner) {
  Array<uint64_t> out(static_cast<py::ssize_t>(owner.counts.size()));
  uint64_t* at = out.mutable_data();
  for (const StreamCounts& counts : owner.counts) *at++ = counts.*kMember;
  return out;
}

template <typename Owner>
void bind_counts(py::class_<Owner>& type) {
  type.def_property_readonly("units", &counts_of<&StreamCounts::units, Owner>)
      .def_property_readonly("tokens", &counts_of<&StreamCounts::tokens, Owner>)
      .def_property_readonly("truncated_tokens", &counts_of<&StreamCounts::truncated_tokens, Owner>)
      .def_property_readonly("truncated_samples", &counts_of<&StreamCounts::truncated_samples, Owner>)
      .def_property_readonly("dropped_tokens", &counts_of<&StreamCounts::dropped_tokens, Owner>)
      .def_property_readonly("dropped_samples", &counts_of<&StreamCounts::dropped_samples, Owner>)
      .def_property_readonly("empty_samples", &counts_of<&StreamCounts::empty_samples, Owner>)
      .def_property_readonly("loss_tokens", &counts_of<&StreamCounts::loss_tokens, Owner>)
      .def_property_readonly("no_loss_samples", &counts_of<&StreamCounts::no_loss_samples, Owner>);
}

}  // namespace

void bind_batches(py::module_& m) {
  bind<BatchFormat>(m, "BatchFormat")
      .def(py::init(&make_batch_format), py::kw_only(), "fields"_a, "num_rows"_a, "seq_len"_a, "pad_id"_a, "pad_left"_a,
           "documents"_a, "document_tokens"_a, "counts_padding"_a, "ignores_pad_id"_a, "needs_loss"_a, "is_packed"_a,
           "pad_to_multiple"_a, "vocab_size"_a, "cu_seqlens_capacity"_a)
      .def_property_readonly("size_bytes", &BatchFormat::size_bytes)
      .def_property_readonly("offsets", &offsets_of);
  bind<BufferPool::Buffer>(m, "Buffer").def("arrays", &arrays_of, "format"_a);
  bind<BufferPool>(m, "BufferPool")
      .def(py::init<size_t, size_t>(), "size_bytes"_a, "max_kept"_a)
      .def("take", [](BufferPool& pool) {
        BufferPool::Buffer buffer = pool.take();
        const auto address = reinterpret_cast<uintptr_t>(buffer.data());  // for Engine.next
        return py::make_tuple(std::move(buffer), address);
      });

  auto info = bind<BatchInfo>(m, "BatchInfo");
  info.def_readonly("end_row", &BatchInfo::end_row)
      .def_readonly("num_rows", &BatchInfo::num_rows)
      .def_readonly("row_tokens", &BatchInfo::row_tokens)
      .def_readonly("row_loss", &BatchInfo::row_loss)
      .def_readonly("max_seqlen", &BatchInfo::max_seqlen)
      .def_property_readonly("hints", [](const BatchInfo& b) { return std::const_pointer_cast<LaneHints>(b.hints); });
  bind_counts(info);
  auto progress = bind<Progress>(m, "Progress");
  progress.def_readonly("num_batches", &Progress::num_batches)
      .def_readonly("plan_s", &Progress::plan_s)
      .def_readonly("supply_s", &Progress::supply_s)
      .def_readonly("load_s", &Progress::load_s)
      .def_readonly("fill_s", &Progress::fill_s)
      .def_readonly("wait_s", &Progress::wait_s);
  bind_counts(progress);
  bind<BoundEngine>(m, "Engine")
      .def(py::init<std::shared_ptr<ShardStore>, std::shared_ptr<Order>, const LayoutSpec&, const BatchFormat&,
                    uint32_t, uint32_t, uint64_t, uint64_t, std::shared_ptr<LaneHints>, std::shared_ptr<SampleList>,
                    uint32_t, std::vector<std::pair<py::object, uintptr_t>>>(),
           py::kw_only(), "store"_a, "order"_a, "layout"_a, "format"_a, "rank"_a, "world_size"_a, "first_row"_a,
           "hints_row"_a, "hints"_a, "list"_a, "num_workers"_a, "buffers"_a)
      .def("next", &BoundEngine::next, "timeout_s"_a, "replacement"_a, "address"_a)
      .def_property_readonly("last", &BoundEngine::last)
      .def_property_readonly("has_batch", &BoundEngine::has_batch)
      .def_property_readonly("next_row", &BoundEngine::next_row)
      .def("check_process", &BoundEngine::check_process)
      .def("progress", &BoundEngine::progress)
      .def("close", &BoundEngine::close);
}

}  // namespace stoker
