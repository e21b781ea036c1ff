// The only room that knows Python. Arguments have been checked by the Python side; what is checked here are array
// lengths and names of enums.
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/process.h"
#include "bindings/bind.h"
#include "bindings/errors.h"
#include "engine/planner.h"
#include "fill/widen.h"
#include "layout/best_fit.h"
#include "layout/foundry_packer.h"
#include "layout/layout.h"
#include "order/order.h"
#include "shard/body.h"
#include "shard/schema.h"
#include "shard/shard_store.h"

namespace stoker {
namespace {

template <typename T>
const T* data_of(const Array<T>& array, size_t size, const char* what) {
  if (static_cast<size_t>(array.size()) != size)
    throw ArgumentError(text(what, " must have ", size, " entries; found ", array.size(), "."));
  return array.data();
}

// ---------------------------------------------------------------- shards
Column make_column(std::string_view role, std::string_view encoding, const std::optional<std::string>& type,
                   uint32_t fixed_size) {
  using Role = Column::Role;
  using Encoding = Column::Encoding;
  static constexpr std::pair<const char*, Role> kRoles[] = {
      {"other", Role::kOther}, {"tokens", Role::kTokens}, {"labels", Role::kLabels}};
  static constexpr std::pair<const char*, Encoding> kEncodings[] = {{"opaque", Encoding::kOpaque},
                                                                    {"bytes", Encoding::kBytes},
                                                                    {"array", Encoding::kArray},
                                                                    {"static_array", Encoding::kStaticArray}};
  return {by_name(kRoles, role), by_name(kEncodings, encoding),
          type ? std::optional(integer_type(*type)) : std::nullopt, fixed_size};
}

StreamFiles make_stream_files(std::string name, std::string directory, bool follow_links, std::string expand_directory,
                              std::string_view supply, bool closes_unheld, std::vector<std::vector<Column>> schemas,
                              std::vector<std::string> raw_basenames, std::vector<std::string> zip_basenames,
                              const Array<uint32_t>& schema_indexes, const Array<uint32_t>& samples,
                              const Array<uint64_t>& raw_bytes, const Array<uint64_t>& zip_bytes,
                              const std::optional<Array<uint64_t>>& tokens) {
  const size_t size = raw_basenames.size();
  if (zip_basenames.size() != size) throw ArgumentError("zip_basenames must be as many as raw_basenames.");
  const uint32_t* schema = data_of(schema_indexes, size, "schema_indexes");
  const uint32_t* num_samples = data_of(samples, size, "samples");
  const uint64_t* raw = data_of(raw_bytes, size, "raw_bytes");
  const uint64_t* zip = data_of(zip_bytes, size, "zip_bytes");
  const uint64_t* totals = tokens ? data_of(*tokens, size, "tokens") : nullptr;

  using Supply = StreamFiles::Supply;
  static constexpr std::pair<const char*, Supply> kSupplies[] = {
      {"there", Supply::kThere}, {"fetched", Supply::kFetched}, {"made", Supply::kMade}};
  StreamFiles files{std::move(name),
                    std::move(directory),
                    follow_links,
                    std::move(expand_directory),
                    by_name(kSupplies, supply),
                    closes_unheld,
                    {},
                    {}};
  for (std::vector<Column>& columns : schemas) files.schemas.push_back({std::move(columns)});
  files.shards.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    if (schema[i] >= files.schemas.size()) throw ArgumentError("a schema index is out of range.");
    files.shards.push_back({std::move(raw_basenames[i]), std::move(zip_basenames[i]), schema[i], num_samples[i], raw[i],
                            zip[i], totals == nullptr ? std::nullopt : std::optional(totals[i])});
  }
  return files;
}

py::array to_numpy(const TokenArray& tokens) {
  py::array out(dtype_of(tokens.type), std::vector<py::ssize_t>{static_cast<py::ssize_t>(tokens.size)});
  if (tokens.size > 0) std::memcpy(out.mutable_data(), tokens.values, size_t{tokens.size} * size_bytes(tokens.type));
  return out;
}

py::dict read_sample(ShardStore& store, uint32_t stream, uint32_t shard_index, uint32_t sample) {
  std::shared_ptr<const Shard> shard;
  std::vector<std::byte> bytes;
  {
    const py::gil_scoped_release release;
    shard = store.get({stream, shard_index});
    if (sample >= shard->num_samples())
      throw ArgumentError(
          text(shard->path(), " has ", shard->num_samples(), " samples; there is no sample ", sample, "."));
    bytes = shard->read_sample(sample);
  }
  const SampleTokens found = shard->parse(sample, bytes);
  py::dict out;
  out["tokens"] = to_numpy(found.tokens);
  if (found.labels) out["labels"] = to_numpy(*found.labels);
  return out;
}

/// Tokens, loss tokens and longest sample.
std::tuple<uint64_t, uint64_t, uint32_t> shard_totals(ShardStore& store, uint32_t stream, uint32_t shard_index) {
  const py::gil_scoped_release release;
  const std::shared_ptr<const Shard> shard = store.get({stream, shard_index});
  uint64_t num_ignored = 0;
  if (shard->has_labels()) {
    shard->for_each_sample([&](const SampleTokens& sample) {
      num_ignored += widen_labels<int64_t>(*sample.labels, 0, sample.labels->size, nullptr).num_ignored;
    });
  }
  return {shard->num_tokens(), shard->num_tokens() - num_ignored, shard->longest_sample()};
}

/// Tokens of each sample.
Array<uint32_t> sample_lengths(ShardStore& store, uint32_t stream, uint32_t shard_index) {
  std::shared_ptr<const Shard> shard;
  {
    const py::gil_scoped_release release;
    shard = store.get({stream, shard_index});
  }
  const std::span<const uint32_t> ends = shard->token_ends();
  Array<uint32_t> lengths(static_cast<py::ssize_t>(ends.size()));
  std::adjacent_difference(ends.begin(), ends.end(), lengths.mutable_data());
  return lengths;
}

// ---------------------------------------------------------------- shards that are supplied
std::vector<std::pair<uint32_t, uint32_t>> as_pairs(const std::vector<ShardId>& ids) {
  std::vector<std::pair<uint32_t, uint32_t>> out;
  for (const ShardId id : ids) out.emplace_back(id.stream, id.shard);
  return out;
}

std::optional<std::pair<uint32_t, uint32_t>> take_wanted(ShardStore& store) {
  const py::gil_scoped_release release;
  const std::optional<ShardId> id = store.supply().take();
  if (!id) return std::nullopt;
  return std::pair(id->stream, id->shard);
}

/// Takes the descriptor over, whatever happens.
void set_ready(ShardStore& store, uint32_t stream, uint32_t shard_index, std::string path, int fd, bool is_compressed) {
  auto file = std::make_shared<File>(std::move(path), fd);
  store.supply().set_ready({stream, shard_index}, {std::move(file), is_compressed});
}

void set_missing(ShardStore& store, uint32_t stream, uint32_t shard_index) {
  store.supply().set_ready({stream, shard_index}, {});
}

void set_failed(ShardStore& store, uint32_t stream, uint32_t shard_index, const py::bytes& pickled) {
  store.supply().set_failed({stream, shard_index}, std::make_exception_ptr(SupplyError(pickled)));
}

void close_supply(ShardStore& store) { store.supply().close(); }

// ---------------------------------------------------------------- order and layout
std::shared_ptr<Order> make_order(const std::vector<std::string>& names, const std::vector<Array<uint64_t>>& sizes,
                                  std::vector<uint64_t> counts, uint64_t seed, uint32_t lanes, uint64_t global_batch,
                                  bool finite, uint64_t unit, bool drop_last, bool shuffle, uint32_t shuffle_block,
                                  std::vector<uint32_t> blocks_ahead) {
  OrderSpec spec;
  for (size_t s = 0; s < names.size(); ++s) {
    const Array<uint64_t>& shards = sizes.at(s);
    spec.streams.push_back({names[s], std::vector<uint64_t>(shards.data(), shards.data() + shards.size())});
  }
  spec.counts = std::move(counts);
  spec.seed = seed;
  spec.lanes = lanes;
  spec.global_batch = global_batch;
  spec.finite = finite;
  spec.unit = unit;
  spec.drop_last = drop_last;
  spec.shuffle = shuffle;
  spec.shuffle_block = shuffle_block;
  spec.blocks_ahead = std::move(blocks_ahead);
  return std::make_shared<Order>(std::move(spec));
}

LayoutSpec make_layout_spec(std::string_view kind, uint32_t seq_len, const std::vector<std::string>& overflow,
                            std::string_view packing, uint32_t pack_window, uint32_t window_rows,
                            std::vector<uint32_t> groups, uint32_t pad_to_multiple, uint32_t max_samples_per_row,
                            std::optional<uint32_t> max_leftover_bins, uint32_t num_packers) {
  using Packing = LayoutSpec::Packing;
  static constexpr std::pair<const char*, LayoutKind> kKinds[] = {
      {"pad", LayoutKind::kPad}, {"concat", LayoutKind::kConcat}, {"pack", LayoutKind::kPack}};
  static constexpr std::pair<const char*, Overflow> kOverflows[] = {{"truncate", Overflow::kTruncate},
                                                                    {"error", Overflow::kError},
                                                                    {"split", Overflow::kSplit},
                                                                    {"drop", Overflow::kDrop}};
  static constexpr std::pair<const char*, Packing> kPackings[] = {{"best_fit", Packing::kBestFit},
                                                                  {"foundry", Packing::kFoundry}};
  LayoutSpec spec;
  spec.kind = by_name(kKinds, kind);
  spec.seq_len = seq_len;
  for (const std::string& of_stream : overflow) spec.overflow.push_back(by_name(kOverflows, of_stream));
  spec.packing = by_name(kPackings, packing);
  spec.pack_window = pack_window;
  spec.window_rows = window_rows;
  spec.groups = std::move(groups);
  spec.pad_to_multiple = pad_to_multiple;
  spec.max_samples_per_row = max_samples_per_row;
  spec.max_leftover_bins = max_leftover_bins;
  spec.num_packers = num_packers;
  return spec;
}

/// Rows of numbered sizes, as lists of numbers: best-fit decreasing over all of them.
std::vector<std::vector<uint32_t>> pack_best_fit(const Array<uint32_t>& sizes, uint32_t seq_len,
                                                 uint32_t max_samples_per_row) {
  const BestFit::Result packed =
      BestFit(seq_len, max_samples_per_row).pack({sizes.data(), static_cast<size_t>(sizes.size())});
  std::vector<std::vector<uint32_t>> rows(packed.num_rows);
  for (const uint32_t i : packed.sorted) rows[packed.row_of[i]].push_back(i);
  return rows;
}

using Bins = std::vector<std::vector<uint64_t>>;

Bins examples_of(const std::vector<FoundryPacker::Bin>& bins) {
  Bins out;
  for (const FoundryPacker::Bin& bin : bins) out.push_back(bin.examples);
  return out;
}

Bins pack_as_foundry(FoundryPacker& packer, const std::vector<std::pair<uint64_t, uint32_t>>& examples) {
  std::vector<FoundryPacker::Example> numbered;
  for (const auto& [number, size] : examples) numbered.push_back({number, size});
  return examples_of(packer.pack(std::move(numbered)));
}

// ---------------------------------------------------------------- hints of pack
using Hint = std::tuple<uint32_t, uint64_t, uint64_t, Bins>;  // lane, window_begin, rows_emitted, leftovers

std::shared_ptr<LaneHints> make_hints(const std::vector<Hint>& hints) {
  auto out = std::make_shared<LaneHints>();
  for (const auto& [lane, window_begin, rows_emitted, leftovers] : hints)
    out->push_back({lane, window_begin, rows_emitted, leftovers});
  return out;
}

std::vector<Hint> list_hints(const LaneHints& hints) {
  std::vector<Hint> out;
  for (const LaneHint& hint : hints) out.emplace_back(hint.lane, hint.window_begin, hint.rows_emitted, hint.leftovers);
  return out;
}

// ---------------------------------------------------------------- listed samples
std::shared_ptr<SampleList> make_sample_list(const std::vector<std::pair<uint32_t, Array<uint64_t>>>& streams,
                                             size_t most_ahead) {
  std::vector<SampleList::Stream> numbered;
  for (const auto& [number, sizes] : streams)
    numbered.push_back({number, std::vector<uint64_t>(sizes.data(), sizes.data() + sizes.size())});
  return std::make_shared<SampleList>(numbered, most_ahead);
}

bool push_samples(SampleList& list, const Array<uint64_t>& samples, const Array<uint32_t>& batch_ends,
                  uint32_t first_packer, bool begins_anew) {
  SampleList::Chunk chunk{{samples.data(), samples.data() + samples.size()},
                          {batch_ends.data(), batch_ends.data() + batch_ends.size()},
                          first_packer,
                          begins_anew};
  const py::gil_scoped_release release;
  return list.push(std::move(chunk));
}

void fail_list(SampleList& list, const py::bytes& pickled) { list.fail(std::make_exception_ptr(SupplyError(pickled))); }

/// The rows of one global batch: segments (n, 5) int64 as stream, shard, sample, token_begin, token_end; and where each
/// row ends among them.
py::tuple plan_rows(std::shared_ptr<ShardStore> store, std::shared_ptr<Order> order, const LayoutSpec& layout,
                    uint64_t first_row) {
  Planner planner(std::move(store), std::move(order), layout, {}, first_row);
  const BatchPlan plan = [&] {
    const py::gil_scoped_release release;
    return planner.next();
  }();
  const std::span<const Segment> segments = plan.rows.segments();
  Array<int64_t> out({static_cast<py::ssize_t>(segments.size()), py::ssize_t{5}});
  int64_t* at = out.mutable_data();
  for (const Segment& segment : segments)
    for (const uint32_t value : {segment.stream, segment.shard, segment.sample, segment.token_begin, segment.token_end})
      *at++ = value;
  Array<int64_t> ends(static_cast<py::ssize_t>(plan.rows.size()));
  for (uint32_t i = 0; i < plan.rows.size(); ++i) ends.mutable_at(i) = plan.rows.first_segment(i + 1);
  return py::make_tuple(std::move(out), std::move(ends));
}

}  // namespace
}  // namespace stoker

PYBIND11_MODULE(_core, m) {
  using namespace stoker;
  register_errors();
  set_work_check([] { return PyGILState_Check() == 0; });
  m.attr("LEAST_PIECE_BYTES") = kLeastPieceBytes;

  bind<Column>(m, "Column").def(py::init(&make_column), "role"_a, "encoding"_a, "type"_a, "fixed_size"_a);
  bind<StreamFiles>(m, "StreamFiles")
      .def(py::init(&make_stream_files), py::kw_only(), "name"_a, "directory"_a, "follow_links"_a, "expand_directory"_a,
           "supply"_a, "closes_unheld"_a, "schemas"_a, "raw_basenames"_a, "zip_basenames"_a, "schema_indexes"_a,
           "samples"_a, "raw_bytes"_a, "zip_bytes"_a, "tokens"_a);
  bind<ShardStore, std::shared_ptr<ShardStore>>(m, "ShardStore")
      .def(py::init<std::vector<StreamFiles>, uint64_t>(), "streams"_a, "cache_bytes"_a)
      .def("read_sample", &read_sample, "stream"_a, "shard"_a, "sample"_a)
      .def("take_wanted", &take_wanted)
      .def("set_ready", &set_ready, "stream"_a, "shard"_a, "path"_a, "fd"_a, "is_compressed"_a)
      .def("set_missing", &set_missing, "stream"_a, "shard"_a)
      .def("set_failed", &set_failed, "stream"_a, "shard"_a, "pickled"_a)
      .def("close_supply", &close_supply)
      .def("held", [](const ShardStore& store) { return as_pairs(store.held()); })
      .def(
          "waited_s", [](ShardStore& store, uint32_t stream) { return store.supply().waited_s(stream); }, "stream"_a)
      .def("totals", &shard_totals, "stream"_a, "shard"_a)
      .def("lengths", &sample_lengths, "stream"_a, "shard"_a);

  bind<Order, std::shared_ptr<Order>>(m, "Order")
      .def(py::init(&make_order), py::kw_only(), "names"_a, "sizes"_a, "counts"_a, "seed"_a, "lanes"_a,
           "global_batch"_a, "finite"_a, "unit"_a, "drop_last"_a, "shuffle"_a, "shuffle_block"_a, "blocks_ahead"_a);
  bind<LayoutSpec>(m, "Layout")
      .def(py::init(&make_layout_spec), py::kw_only(), "kind"_a, "seq_len"_a, "overflow"_a, "packing"_a,
           "pack_window"_a, "window_rows"_a, "groups"_a, "pad_to_multiple"_a, "max_samples_per_row"_a,
           "max_leftover_bins"_a, "num_packers"_a);
  bind<SampleList, std::shared_ptr<SampleList>>(m, "SampleList")
      .def(py::init(&make_sample_list), "streams"_a, "most_ahead"_a)
      .def("push", &push_samples, "samples"_a, "batch_ends"_a, "first_packer"_a, "begins_anew"_a)
      .def("fail", &fail_list, "pickled"_a)
      .def("close", &SampleList::close);
  bind<LaneHints, std::shared_ptr<LaneHints>>(m, "LaneHints")
      .def(py::init(&make_hints), "hints"_a)
      .def("list", &list_hints)
      .def(py::pickle(&list_hints, &make_hints));
  m.def("pack_best_fit", &pack_best_fit, "sizes"_a, "seq_len"_a, "max_samples_per_row"_a);
  bind<FoundryPacker>(m, "FoundryPacker")
      .def(py::init<uint32_t, uint32_t, std::optional<uint32_t>>(), "num_rows"_a, "seq_len"_a, "max_leftover_bins"_a)
      .def("pack", &pack_as_foundry, "examples"_a)
      .def_property_readonly("leftovers", [](const FoundryPacker& p) { return examples_of(p.leftovers()); });
  m.def("plan_rows", &plan_rows, "store"_a, "order"_a, "layout"_a, "first_row"_a);

  bind_batches(m);
}
