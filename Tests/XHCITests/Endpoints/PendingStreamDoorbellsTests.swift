// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import XHCI

/// The bound on stream doorbells that were rung and not handled yet.
struct PendingStreamDoorbellsTests {
    private static let limit = XHCILimits.streamDoorbells

    private static func doorbell(_ number: Int) -> PendingStreamDoorbells.Doorbell {
        .init(slot: 1, endpoint: 2 + number / 65533, stream: 1 + number % 65533)
    }

    /// Rings `count` doorbells and returns those that are pending then.
    private func pending(afterRinging count: Int) -> [PendingStreamDoorbells.Doorbell] {
        var doorbells = PendingStreamDoorbells()
        for number in 0..<count { doorbells.insert(Self.doorbell(number)) }
        var pending: [PendingStreamDoorbells.Doorbell] = []
        while let next = doorbells.popFirst() { pending.append(next) }
        return pending
    }

    @Test(arguments: [limit - 1, limit, limit + 1])
    func `doorbells beyond the limit are dropped`(count: Int) {
        let expected = (0..<min(count, Self.limit)).map(Self.doorbell)
        #expect(pending(afterRinging: count) == expected)
    }

    @Test func `a stream is pending once, however often its doorbell is rung`() {
        var doorbells = PendingStreamDoorbells()
        for _ in 0...Self.limit { doorbells.insert(Self.doorbell(0)) }
        // The repeated doorbells have taken no space from other streams.
        doorbells.insert(Self.doorbell(1))
        #expect(doorbells.popFirst() == Self.doorbell(0))
        #expect(doorbells.popFirst() == Self.doorbell(1))
        #expect(doorbells.popFirst() == nil)
        // A stream that was handled may be rung again.
        doorbells.insert(Self.doorbell(0))
        #expect(!doorbells.isEmpty)
    }
}
