// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import PCI
internal import Platform
internal import SystemPackage
internal import VFIOUser
internal import XHCI

/// The controller's MSI-X messages, each sent to the client as a write to its vector's eventfd.
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
                logger.warning("cannot use the client's eventfd for vector \(vector): \(error)")
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

    /// Resets the MSI-X state; the client's eventfds stay connected.
    func reset() { state.reset() }

    /// Closes the client's eventfds and resets the MSI-X state.
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
