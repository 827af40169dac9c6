// SPDX-License-Identifier: Apache-2.0

internal import USB

/// What the source sends and the sink wants to see.
enum PatternKind: String, CaseIterable {
    /// Zeroes, which are never out of step.
    case zero
    /// Each packet counts from 0 to 62 again and again.
    case mod63
    /// Data is neither written nor looked at: what a guest reads is what was in its memory.
    case none
}

/// A pattern for the packet size of one endpoint, made once.
struct DataPattern {
    private let kind: PatternKind
    /// As many whole packets as make it long.
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

    /// Writes the pattern into the first `count` bytes.
    func fill(_ buffer: TransferBuffer, count: Int) {
        switch kind {
        case .zero: buffer.fill(count, with: 0)
        case .mod63: buffer.fill(count, repeating: block.span)
        case .none: break
        }
    }

    /// The first byte that does not follow the pattern.
    func firstDifference(in buffer: TransferBuffer) -> (offset: Int, byte: UInt8)? {
        kind == .none ? nil : buffer.firstDifference(from: block.span)
    }

    /// Whether a wrong byte is one.
    var isChecked: Bool { kind != .none }
}
