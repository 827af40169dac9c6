// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The patterns of the kernel's `usbtest` driver.
enum PatternKind: String, CaseIterable {
    /// Zeroes (usbtest's pattern 0).
    case zero
    /// Each packet counts from 0 to 62 over and over (usbtest's pattern 1).
    case mod63
    /// No pattern: data is neither written nor checked. IN transfers leave guest memory unchanged.
    case none
}

/// A pattern for the packet size of one endpoint.
struct DataPattern {
    private let kind: PatternKind
    /// The pattern for several whole packets.
    private let block: [UInt8]

    init(_ kind: PatternKind, maxPacketSize: Int) {
        self.kind = kind
        let packet = max(maxPacketSize, 1)
        let packets = (LoopbackLimits.patternBlock + packet - 1) / packet
        switch kind {
        case .mod63: block = (0..<packets * packet).map { UInt8($0 % packet % 63) }
        case .zero: block = Array(repeating: 0, count: packets * packet)
        case .none: block = []
        }
    }

    /// Writes the pattern to the first `count` bytes.
    func fill(_ buffer: TransferBuffer, count: Int) {
        switch kind {
        case .zero: buffer.fill(count, with: 0)
        case .mod63: buffer.fill(count, repeating: block.span)
        case .none: break
        }
    }

    /// The first byte that differs from the pattern.
    func firstDifference(in buffer: TransferBuffer) -> (offset: Int, byte: UInt8)? {
        kind == .none ? nil : buffer.firstDifference(from: block.span)
    }

    /// Whether data is compared with the pattern.
    var isChecked: Bool { kind != .none }
}
