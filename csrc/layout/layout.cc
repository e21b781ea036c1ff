#include "layout/layout.h"

#include <utility>

#include "base/error.h"
#include "layout/listed_layout.h"
#include "layout/pack_layout.h"
#include "layout/unit_layouts.h"

namespace stoker {

std::unique_ptr<Layout> make_layout(const LayoutSpec& spec, const Order& order, SampleLengths& lengths,
                                    const LayoutStart& start, std::shared_ptr<SampleList> list) {
  if (!list && order.spec().finite == (spec.kind == LayoutKind::kPack))
    throw ArgumentError("layout pack needs an endless order, and the others a finite one.");
  if (spec.kind != LayoutKind::kConcat && spec.overflow.size() != order.num_streams())
    throw ArgumentError(text("overflow must be given for each of ", order.num_streams(), " streams; found ",
                             spec.overflow.size(), "."));
  if (list) {
    if (spec.kind == LayoutKind::kConcat ||
        (spec.kind == LayoutKind::kPack && spec.packing != LayoutSpec::Packing::kFoundry))
      throw ArgumentError("listed samples go into rows by layout pad, or by LLM Foundry's packer.");
    return std::make_unique<ListedLayout>(spec, order, lengths, std::move(list), start);
  }
  switch (spec.kind) {
    case LayoutKind::kPad:
      return std::make_unique<PadLayout>(spec, order, lengths);
    case LayoutKind::kConcat:
      return std::make_unique<ConcatLayout>(order, lengths);
    case LayoutKind::kPack:
      return std::make_unique<PackLayout>(spec, order, lengths, start);
  }
  throw ArgumentError("unknown layout.");  // not reached: the bindings accept known names only
}

}  // namespace stoker
