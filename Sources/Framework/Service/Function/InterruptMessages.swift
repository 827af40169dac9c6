// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import PCI
internal import Platform
internal import SystemPackage
internal import VFIOUser
internal import XHCI

/// The controller's interrupts as the client receives them: one eventfd a vector.
final class InterruptMessages: InterruptSink {
    private var state: MSIXState
    private var events: [EventDescriptor?]
    private let logger: Logger

    init(_ layout: MSIXLayout, logger: Logger) {
        state = MSIXState(layout)
        events = Array(repeating: nil, count: layout.vectorCount)
        self.logger = logger
    }

    func signal(vector: Int) {
        if state.raise(vector) { send(vector) }
    }

    func connect(_ vector: Int, to descriptor: consuming OwnedDescriptor?) {
        guard events.indices.contains(vector) else { return }
        events[vector] = nil
        if let descriptor = descriptor.take() {
            do throws(Errno) {
                events[vector] = try EventDescriptor(descriptor)
            } catch {
                logger.warning("the client's eventfd for vector \(vector) is of no use: \(error)")
            }
        }
        if state.setConnected(vector, events[vector] != nil) { send(vector) }
    }

    func change(_ vector: Int, _ action: InterruptAction) {
        switch action {
        case .mask: _ = state.setMasked(vector, true)
        case .unmask: if state.setMasked(vector, false) { send(vector) }
        case .trigger: signal(vector: vector)
        }
    }

    /// The function was reset; the client's eventfds stay.
    func reset() { state.reset() }

    /// The client is gone, and its eventfds with it.
    func disconnectAll() {
        for vector in events.indices { connect(vector, to: nil) }
        state.reset()
    }

    func read(at offset: Int, into bytes: inout OutputSpan<UInt8>) {
        state.read(at: offset, into: &bytes)
    }

    func write(at offset: Int, from bytes: Span<UInt8>) { state.write(at: offset, from: bytes) }

    private func send(_ vector: Int) { events[vector]?.signal() }
}
