// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// Eventfds and masks.
extension Session {
    func setInterrupts(
        _ header: MessageHeader, _ payload: Span<UInt8>, descriptors: inout DescriptorList,
        into reply: MessageBuffer
    ) {
        do throws(Errno) {
            guard let request = SetIRQsRequest(payload) else { throw .invalidArgument }
            try carryOut(
                request, payload.extracting(SetIRQsRequest.size..<payload.count), &descriptors)
            start(header, into: reply)
        } catch {
            fail(header, error, into: reply)
        }
    }

    private func carryOut(
        _ request: SetIRQsRequest, _ data: Span<UInt8>, _ descriptors: inout DescriptorList
    ) throws(Errno) {
        guard request.index < interrupts.count else { throw .invalidArgument }
        let type = interrupts[request.index]
        let action: InterruptAction
        switch request.flags.intersection(.anyAction) {
        case .actionMask: action = .mask
        case .actionUnmask: action = .unmask
        case .actionTrigger: action = .trigger
        default: throw .invalidArgument
        }
        let form = request.flags.intersection(.anyData)
        guard request.flags.subtracting([.anyAction, .anyData]).isEmpty,
            form == .dataEventFD || descriptors.isEmpty
        else { throw .invalidArgument }

        if request.count == 0 {
            // No vector at all means every vector, but only in this one form.
            guard form == .dataNone, action == .trigger, request.start == 0 else {
                throw .invalidArgument
            }
            for vector in 0..<type.count {
                device.setInterrupt(request.index, vector: vector, to: nil)
            }
            return
        }
        // Both come from 32 bits and cannot overflow 64.
        guard request.start + request.count <= type.count else { throw .invalidArgument }
        if action != .trigger, !type.flags.contains(.maskable) { throw .notSupported }

        switch form {
        case .dataNone:
            for vector in request.start..<request.start + request.count {
                device.changeInterrupt(request.index, vector: vector, action)
            }
        case .dataBool:
            guard data.count >= request.count else { throw .invalidArgument }
            for place in 0..<request.count where data[place] != 0 {
                device.changeInterrupt(request.index, vector: request.start + place, action)
            }
        case .dataEventFD:
            // To be told of masking is not offered.
            guard action == .trigger else { throw .notSupported }
            // None at all takes the vectors' eventfds away.
            guard descriptors.isEmpty || descriptors.count == request.count else {
                throw .invalidArgument
            }
            for place in 0..<request.count {
                device.setInterrupt(
                    request.index, vector: request.start + place, to: descriptors.take(place))
            }
        default: throw .invalidArgument
        }
    }
}
