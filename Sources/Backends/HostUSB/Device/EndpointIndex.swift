// SPDX-License-Identifier: Apache-2.0

internal import USB

extension EndpointAddress {
    /// The number of indices that ``index`` may return.
    static let indexCount = 32

    /// An array index: OUT endpoints by number, then IN endpoints. Both directions of the default
    /// control endpoint have index 0.
    var index: Int { number == 0 ? 0 : Int(number) + (direction == .in ? 16 : 0) }

    /// The endpoint with an index.
    init(index: Int) { self.init(UInt8(index & 15), index < 16 ? .out : .in) }
}
