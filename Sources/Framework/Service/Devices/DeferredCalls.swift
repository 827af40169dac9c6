// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// Calls that the loop makes after the current callback has returned.
final class DeferredCalls {
    private let loop: any EventLoop
    private var watches: [Int: Watch] = [:]
    private var nextNumber = 0

    init(_ loop: any EventLoop) { self.loop = loop }

    /// Calls a closure later in this turn of the loop, or in the next turn.
    func call(_ body: @escaping () -> Void) {
        let number = nextNumber
        nextNumber &+= 1
        watches[number] = loop.schedule(at: loop.now) { [weak self] in
            self?.watches[number] = nil
            body()
        }
    }

    /// Drops the calls that have not been made.
    func cancelAll() { watches = [:] }
}
